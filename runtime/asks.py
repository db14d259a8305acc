"""A turn as the scheduler is asked for it: its blocks and sizes, its program, its hints."""

from collections import OrderedDict, defaultdict

import msgspec

from sessile.router.blocks import tip_of
from sessile.router.policy import Ask
from sessile.router.pool import Pool
from sessile.sessions.binding import Standing, Standings
from sessile.sessions.prefix import BLOCK_BYTES, read_prompt
from sessile.sessions.record import SessionKey
from sessile.sizes import Sizes
from sessile.turn import Turn

_MOST_PROGRAMS = 50_000


class Asks:
    """Makes them, and learns from each turn's end how many tokens its model makes of a text. Made
    by `Placement`, one a router."""

    def __init__(self, pool: Pool, standings: Standings) -> None:
        self._pool = pool
        self._standings = standings
        self._sizes: defaultdict[str, Sizes] = defaultdict(Sizes)
        self._programs: OrderedDict[str, str] = OrderedDict()  # of sessions with a parent

    def learn(self, turn: Turn, prompt_tokens: int, output_tokens: int | None) -> float:
        """What the turn's prompt and reply came to. Returns the tokens per byte of its session."""
        return self._sizes[turn.key.model].learn(turn.prompt_size, prompt_tokens, output_tokens)

    def of(self, turn: Turn, standing: Standing | None) -> Ask:
        """The ask for a turn of a session of which so much is known."""
        request, key = turn.request, turn.key
        sizes = self._sizes[key.model]
        adapter = self._pool.adapters.get(key.model)
        space = key.tenant if adapter is None else f"{key.tenant}\x1f{key.model}"
        prompt = read_prompt(request.document, space)
        turn.prompt_size = prompt.size
        ratio = sizes.tokens_per_byte
        if standing is not None and standing.tokens_per_byte is not None:
            ratio = standing.tokens_per_byte
        hints, parent = request.hints, request.claims.parent
        deadline = None
        if hints.deadline_s is not None:
            deadline = turn.began + hints.deadline_s
        text = key.text
        program = hints.program
        if program is None and parent is not None:
            program = self._program(text, SessionKey(key.tenant, key.model, parent).text)
        ask = Ask(
            session=text,
            bound=standing.binding if standing is not None else None,
            context_tokens=standing.context_tokens if standing is not None else None,
            group=request.claims.group,
            near=self._near(turn) if standing is None else None,
            turn=turn.id,
            attribution=turn.attribution,
            model=key.model,
            tenant=key.tenant,
            program=program or text,
            blocks=prompt.blocks,
            block_tokens=max(1, round(BLOCK_BYTES * ratio)),
            opening=prompt.opening,
            prompt_tokens=max(1, round(prompt.size * ratio)),
            output_tokens=sizes.reply(hints.output_tokens),
            priority=hints.priority,
            deadline=deadline,
            last=request.is_last,
        )
        if adapter is None:
            return ask
        base = adapter.base
        return msgspec.structs.replace(
            ask, base=base, load_s=self._pool.adapters.load_s(base),
            attribution=tip_of(turn.attribution, key.model),
        )  # fmt: skip

    def _program(self, child: str, parent: str) -> str:
        """The session that began the tree of this parent; remembered of the child, too."""
        program = self._programs[child] = self._programs.get(parent, parent)
        if len(self._programs) > _MOST_PROGRAMS:
            self._programs.popitem(last=False)
        return program

    def _near(self, turn: Turn) -> str | None:
        """Where the parent is, as far as this router knows: a child begins with its prefix."""
        parent = turn.request.claims.parent
        if parent is None:
            return None
        standing = self._standings.get(SessionKey(turn.key.tenant, turn.key.model, parent))
        return standing.binding.replica if standing is not None else None
