"""What `--help` says is what there is."""

import pytest
from typer.testing import CliRunner

from sessile.cli import app
from sessile.discovery.sources import FORMS
from sessile.router.policy import POLICIES


def helped(*command):
    """The page, as one line without frames."""
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    return " ".join(done.output.replace("│", " ").split())


def test_every_policy_and_kind_of_source_is_named():
    """Those of a file, DNS, Kubernetes and Ray have a line to copy each."""
    page = helped("serve")
    assert all(policy in page for policy in POLICIES)
    assert "a file, DNS, Kubernetes, Ray Serve" in page
    schemes = [form.split("://")[0].split()[-1] for form in FORMS.split("://")[:-1]]
    assert len(schemes) == 4 and all(f"{scheme}://" in page for scheme in schemes)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("up", "[smollm2-135m]"),
        ("up", "[default: session]"),
        ("serve", "[default: 127.0.0.1]"),
        ("deploy ray", "[the embedded one]"),
        ("deploy ray", "[llamacpp]"),
        ("deploy ray", "[120]"),
    ],
)
def test_defaults_are_shown(command, default):
    """In brackets, which are no markup."""
    assert default in helped(*command.split())
