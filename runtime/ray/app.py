"""The application for Ray Serve: `import_path: sessile.ray.app:build` in a Serve config."""

import warnings

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from sessile.ray.arguments import RayArguments, served
from sessile.ray.policy import Policy
from sessile.ray.replica import EngineReplica
from sessile.ray.roll_call import RollCall

_ROLL, _ENGINE = "Roll", "Engine"
_QUIET = {"enable_access_log": False}  # everybody tells once a second
_STOP_S = 30.0  # of a drained engine, until Ray kills it
_TELL_S = 1.0
_LOOK_BACK_S = 5.0


def build(args: RayArguments) -> Application:
    """The roll, and behind it the replicas that `args` ask for."""
    resources = {"CPU": args.cpus, "GPU": args.gpus}
    engines = serve.deployment(
        EngineReplica,
        name=_ENGINE,
        autoscaling_config=_autoscaling(args),
        # One bundle a replica: its GPUs are of one node, and those of the tensor parallel ranks
        # that the engine starts, which inherit them from the actor.
        placement_group_bundles=[{name: n for name, n in resources.items() if n}],
        placement_group_strategy="STRICT_PACK",
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=args.drain_s + _STOP_S,
        health_check_period_s=2.0,
        max_surge_percent=args.surge_percent,
        logging_config=_QUIET,
    )
    roll = serve.deployment(
        RollCall, name=_ROLL, num_replicas=1, max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0}, logging_config=_QUIET,
    )  # fmt: skip
    return roll.bind(engines.bind(args.model_dump(), _ROLL), served(args), args.ttft_s)


def _autoscaling(args: RayArguments) -> AutoscalingConfig:
    with warnings.catch_warnings():
        # Ray would have `metrics_interval_s` set by the environment of the cluster's start, which
        # is not ours; at its 10 s, turns would wait long for another replica.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            metrics_interval_s=_TELL_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=0.0,  # `Goals` says how long: Ray's own delays would come on top
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(policy_function=Policy, policy_kwargs=args.goals()),
        )
