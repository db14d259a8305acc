"""A replica in virtual time: an engine's prefix cache, its queue, its prefill and its decoding.

The model: requests are taken first come, first served, each when its tokens fit the memory that no
running request holds; prefills run one at a time and stop the decoding of the others meanwhile, as
SGLang's scheduler does by default; the batch decodes together. Blocks leave by age; with a host
cache they wait there, and coming back costs a transfer instead of a prefill.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count

import msgspec

from sessile.router.price import work

_BATCH = 0.006  # each further request of a batch makes a step so much longer: 6.1 to 6.7 ms at 16


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica can do. Rates in tokens a second, times in seconds."""

    kv_tokens: int = 120_000
    host_tokens: int = 0
    prefill_rate: float = 20_000.0
    transfer_rate: float = 200_000.0
    decode_s: float = 0.008
    base_s: float = 0.02
    slots: int = 64


class Request(msgspec.Struct):
    """One turn at an engine. `blocks` are those of the prompt, `after` those of prompt and reply.
    `generated` is set when the engine dies under it."""

    id: str
    blocks: Sequence[int]
    after: Sequence[int]
    prompt_tokens: int
    output_tokens: int
    sent_at: float = 0.0
    first_at: float = 0.0
    cached_tokens: int = 0
    generated: int = 0


class SimEngine:
    """One replica. `now` only grows; `next_at` says when `advance` has something to do."""

    def __init__(
        self, hardware: Hardware, block_tokens: int, on_first: Callable[[Request, float], None],
        on_end: Callable[[Request, float], None],
    ) -> None:  # fmt: skip
        self.hardware = hardware
        self.block_tokens = block_tokens
        self.served = 0
        self.computed_tokens = 0
        self._on_first = on_first
        self._on_end = on_end
        self._start()

    def _start(self) -> None:
        self._pins: dict[int, int] = {}  # cached blocks that running requests stand on
        self._idle: OrderedDict[int, None] = OrderedDict()  # the other cached ones, oldest first
        self._private = 0  # tokens of running requests beyond their full blocks
        self._host: OrderedDict[int, None] = OrderedDict()
        self._queue: deque[Request] = deque()
        self._prefilling: Request | None = None
        self._prefill_ends = 0.0
        self._decoding: list[tuple[float, int, Request]] = []
        self._order = count()
        self._clock = 0.0  # decode steps that every running request has had
        self._clock_at = 0.0

    @property
    def running(self) -> int:
        """Requests that hold memory."""
        return len(self._decoding) + (self._prefilling is not None)

    @property
    def waiting(self) -> int:
        """Requests that do not yet."""
        return len(self._queue)

    @property
    def held_tokens(self) -> int:
        """KV memory in use: of running requests, and cached."""
        return self._private + (len(self._pins) + len(self._idle)) * self.block_tokens

    def requests(self) -> list[Request]:
        """All that are here."""
        held = [self._prefilling] if self._prefilling is not None else []
        return [*self._queue, *held, *(request for _, _, request in self._decoding)]

    def send(self, request: Request, now: float) -> None:
        """A request arrives."""
        request.sent_at = now
        self._queue.append(request)
        self._begin(now)

    def cancel(self, request: Request, now: float) -> None:
        """Whoever asked has gone: the request is over, what it had computed stays cached."""
        if request is self._prefilling:
            self._prefilling = None
            self._clock_at = now
            self._free(request, whole=False)
        elif any(entry[2] is request for entry in self._decoding):
            self._tick(now)
            self._decoding = [entry for entry in self._decoding if entry[2] is not request]
            heapify(self._decoding)
            self._free(request, whole=False)
        else:
            self._queue = deque(other for other in self._queue if other is not request)
        self._begin(now)

    def fail(self, now: float) -> list[Request]:
        """The engine dies, and stands there anew with nothing in memory; what it was working on."""
        self._tick(now)
        for ends_at, _, request in self._decoding:
            request.generated = max(0, int(request.output_tokens - (ends_at - self._clock)))
        lost = self.requests()
        self._start()
        return lost

    def match(self, blocks: Sequence[int]) -> tuple[int, int]:
        """How many leading blocks are cached, and how many behind them wait in the host cache."""
        found = 0
        for key in blocks:
            if key not in self._pins and key not in self._idle:
                break
            found += 1
        hosted = 0
        if self._host:
            for key in blocks[found:]:
                if key not in self._host:
                    break
                hosted += 1
        return found, hosted

    def wait_s(self, now: float) -> float:
        """The prefill time that is ahead of a request sent now: known only to an oracle."""
        ahead = max(0.0, self._prefill_ends - now) if self._prefilling is not None else 0.0
        for request in self._queue:
            ahead += self.prefill_s(request.blocks, request.prompt_tokens)
        return ahead

    def prefill_s(self, blocks: Sequence[int], tokens: int) -> float:
        """How long the prefill of a prompt takes with what is cached now."""
        found, hosted = self.match(blocks)
        return self._prefill_s(found, hosted, tokens)

    def _prefill_s(self, found: int, hosted: int, tokens: int) -> float:
        hardware = self.hardware
        cached = min((found + hosted) * self.block_tokens, tokens - 1)
        seconds = work(cached, tokens - cached) / hardware.prefill_rate
        return hardware.base_s + seconds + hosted * self.block_tokens / hardware.transfer_rate

    def next_at(self) -> float | None:
        """When something ends here next."""
        if self._prefilling is not None:
            return self._prefill_ends
        if self._decoding:
            return self._clock_at + max(0.0, self._decoding[0][0] - self._clock) * self._step_s()
        return None

    def advance(self, now: float) -> None:
        """Let what is due happen."""
        if self._prefilling is not None:
            if self._prefill_ends > now:
                return
            request, self._prefilling = self._prefilling, None
            self._clock_at = now
            heappush(
                self._decoding, (self._clock + request.output_tokens, next(self._order), request)
            )
            request.first_at = now
            self._on_first(request, now)
        else:
            self._tick(now)
            while self._decoding and self._decoding[0][0] <= self._clock + 1e-9:
                _, _, request = heappop(self._decoding)
                self._finish(request)
                self._on_end(request, now)
        self._begin(now)

    def _step_s(self) -> float:
        return self.hardware.decode_s * (1.0 + _BATCH * len(self._decoding))

    def _tick(self, now: float) -> None:
        """Bring the decode clock up to `now`; it stands still during a prefill."""
        if self._prefilling is None and self._decoding:
            self._clock += (now - self._clock_at) / self._step_s()
        self._clock_at = now

    def _begin(self, now: float) -> None:
        """Start the next prefill, if none runs and its memory can be had."""
        if self._prefilling is not None or not self._queue:
            return
        if self.running >= self.hardware.slots:
            return
        request = self._queue[0]
        size, blocks = self.block_tokens, request.blocks
        found, hosted = self.match(blocks)
        tokens = request.prompt_tokens + request.output_tokens
        held = sum(key not in self._pins for key in blocks[:found])
        needed = tokens - (found - held) * size
        fits = self._private + len(self._pins) * size + needed <= self.hardware.kv_tokens
        if not fits and self.running:
            return
        self._tick(now)
        self._queue.popleft()
        for key in blocks[found:]:
            self._host.pop(key, None)
        for key in blocks:
            self._pins[key] = self._pins.get(key, 0) + 1
            self._idle.pop(key, None)
        self._private += tokens - size * len(blocks)
        self._evict()
        request.cached_tokens = min((found + hosted) * size, request.prompt_tokens - 1)
        self.computed_tokens += request.prompt_tokens - request.cached_tokens
        self._prefilling = request
        self._prefill_ends = now + self._prefill_s(found, hosted, request.prompt_tokens)

    def _finish(self, request: Request) -> None:
        self.served += 1
        self._free(request)
        self._evict()

    def _free(self, request: Request, whole: bool = True) -> None:
        """Let go of its memory: its blocks, and those of its reply, stay cached until their room
        is needed. NOTE: the deepest first, which makes it the oldest."""
        size, pins, idle = self.block_tokens, self._pins, self._idle
        self._private -= request.prompt_tokens + request.output_tokens - size * len(request.blocks)
        if whole:
            for key in reversed(request.after[len(request.blocks) :]):
                if key not in pins:
                    idle[key] = None
                    idle.move_to_end(key)
                    self._host.pop(key, None)
        for key in reversed(request.blocks):
            if pins[key] > 1:
                pins[key] -= 1
            else:
                del pins[key]
                idle[key] = None

    def _evict(self) -> None:
        """The oldest idle blocks leave until the rest fits."""
        over = self.held_tokens - self.hardware.kv_tokens
        host, most = self._host, self.hardware.host_tokens // self.block_tokens
        while over > 0 and self._idle:
            key, _ = self._idle.popitem(last=False)
            over -= self.block_tokens
            if most:
                host[key] = None
                host.move_to_end(key)
                if len(host) > most:
                    host.popitem(last=False)
