"""The name of every key in Redis."""

from functools import lru_cache
from hashlib import blake2b


class Keys:
    """Every key name. Those of one session share a hash tag, the digest of tenant and session, so
    that they lie in one Cluster slot; client-made ids never stand in a key."""

    def __init__(self, tenant: str, session: str, model: str = "") -> None:
        tag = _known_digest(tenant, session)
        self.models = f"sessile:{{{tag}}}:models"
        end = f"{{{tag}}}:{_known_digest(model)}"
        self.record = f"sessile:rec:{end}"
        self.binding = f"sessile:bind:{end}"
        self.lock = f"sessile:lock:{end}"
        self.fence = f"sessile:fence:{end}"
        self.variant = f"sessile:variant:{end}"

    @staticmethod
    def turn(tenant: str, turn: str) -> str:
        return f"sessile:turn:{_digest(tenant, turn)}"

    @staticmethod
    def recent(tenant: str) -> str:
        return f"sessile:recent:{_known_digest(tenant)}"

    @staticmethod
    def lineage(tenant: str, model: str, step: str) -> str:
        return f"sessile:line:{_known_digest(tenant, model)}:{step}"

    @staticmethod
    def reports() -> tuple[str, str, str]:
        return "sessile:{reports}:seen", "sessile:{reports}:told", "sessile:{reports}:news"

    @staticmethod
    def adapters() -> str:
        return "sessile:adapters"

    @staticmethod
    def releases() -> str:
        return "sessile:releases"

    @staticmethod
    def figures(release: str) -> str:
        return f"sessile:figures:{_digest(release)}"

    @staticmethod
    def conversation(tenant: str, conversation: str) -> tuple[str, str, str]:
        tag = _known_digest(tenant, conversation)
        end = f"{{{tag}}}"
        return f"sessile:conv:{end}", f"sessile:conv-order:{end}", f"sessile:conv-items:{end}"

    @staticmethod
    def events(tenant: str, turn: str) -> tuple[str, str]:
        return _keys_of_events(tenant, turn)

    @staticmethod
    def open_turns() -> str:
        return "sessile:{open}:turns"

    @staticmethod
    def newest(tenant: str, session: str) -> str:
        return f"sessile:newest:{_digest(tenant, session)}"

    @staticmethod
    def once(tenant: str, key: str) -> str:
        return f"sessile:once:{_digest(tenant, key)}"


def _digest(*parts: str) -> str:
    data = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=12).hexdigest()


_known_digest = lru_cache(maxsize=16_384)(_digest)  # of what comes again turn after turn


@lru_cache(maxsize=4_096)  # of the turns that run
def _keys_of_events(tenant: str, turn: str) -> tuple[str, str]:
    tag = _digest(tenant, turn)
    return f"sessile:{{{tag}}}:events", f"sessile:{{{tag}}}:batches"
