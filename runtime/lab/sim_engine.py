"""A replica in virtual time: an engine's prefix cache, its queue, its prefill and its decoding.

The model: requests are taken first come, first served, each when its tokens fit the memory that no
running request holds; prefills run one at a time and stop the decoding of the others meanwhile, as
SGLang's scheduler does by default; the batch decodes together. Blocks leave by age; with a host
cache they wait there, and coming back costs a transfer instead of a prefill.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
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
    """One turn at an engine. `blocks` are those of the prompt, `after` those of prompt and reply,
    of `block_tokens` each."""

    id: str
    blocks: Sequence[int]
    after: Sequence[int]
    block_tokens: int
    prompt_tokens: int
    output_tokens: int
    sent_at: float = 0.0
    first_at: float = 0.0
    cached_tokens: int = 0


class SimEngine:
    """One replica. `now` only grows; `next_at` says when `advance` has something to do."""

    def __init__(
        self, hardware: Hardware, on_first: Callable[[Request, float], None],
        on_end: Callable[[Request, float], None],
    ) -> None:  # fmt: skip
        self.hardware = hardware
        self.served = 0
        self.computed_tokens = 0
        self._on_first = on_first
        self._on_end = on_end
        self._cache: OrderedDict[int, int] = OrderedDict()
        self._pins: dict[int, int] = {}
        self._cached = 0
        self._private = 0  # tokens of running requests beyond their cached blocks
        self._host: OrderedDict[int, int] = OrderedDict()
        self._hosted = 0
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

    def requests(self) -> list[Request]:
        """All that are here."""
        held = [self._prefilling] if self._prefilling is not None else []
        return [*self._queue, *held, *(request for _, _, request in self._decoding)]

    def send(self, request: Request, now: float) -> None:
        """A request arrives."""
        request.sent_at = now
        self._queue.append(request)
        self._begin(now)

    def match(self, blocks: Sequence[int]) -> tuple[int, int]:
        """How many leading blocks are cached, and how many behind them wait in the host cache."""
        found = 0
        for key in blocks:
            if key not in self._cache:
                break
            found += 1
        hosted = 0
        for key in blocks[found:]:
            if key not in self._host:
                break
            hosted += 1
        return found, hosted

    def wait_s(self, now: float) -> float:
        """The prefill time that is ahead of a request sent now: known only to an oracle."""
        ahead = max(0.0, self._prefill_ends - now) if self._prefilling is not None else 0.0
        for request in self._queue:
            ahead += self.prefill_s(request.blocks, request.block_tokens, request.prompt_tokens)
        return ahead

    def prefill_s(self, blocks: Sequence[int], block_tokens: int, tokens: int) -> float:
        """How long the prefill of a prompt takes with what is cached now."""
        found, hosted = self.match(blocks)
        return self._prefill_s(found, hosted, block_tokens, tokens)

    def _prefill_s(self, found: int, hosted: int, block_tokens: int, tokens: int) -> float:
        hardware = self.hardware
        cached = min((found + hosted) * block_tokens, tokens - 1)
        seconds = work(cached, tokens - cached) / hardware.prefill_rate
        return hardware.base_s + seconds + hosted * block_tokens / hardware.transfer_rate

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
        found, hosted = self.match(request.blocks)
        size = request.block_tokens
        needed = request.prompt_tokens + request.output_tokens - found * size
        for key in request.blocks[:found]:
            self._pin(key, 1)
        if not self._make_room(needed) and self.running:
            for key in request.blocks[:found]:
                self._pin(key, -1)
            return
        self._tick(now)
        self._queue.popleft()
        for key in request.blocks[found:]:
            self._store(key, size)
            self._pin(key, 1)
        self._private += request.prompt_tokens + request.output_tokens - size * len(request.blocks)
        for key in reversed(request.blocks):
            self._cache.move_to_end(key)
        request.cached_tokens = min((found + hosted) * size, request.prompt_tokens - 1)
        self.computed_tokens += request.prompt_tokens - request.cached_tokens
        self._prefilling = request
        self._prefill_ends = now + self._prefill_s(found, hosted, size, request.prompt_tokens)

    def _finish(self, request: Request) -> None:
        self.served += 1
        size = request.block_tokens
        self._private -= request.prompt_tokens + request.output_tokens - size * len(request.blocks)
        for key in request.blocks:
            self._pin(key, -1)
        for key in request.after[len(request.blocks) :]:
            self._store(key, size)
        for key in reversed(request.after):
            if key in self._cache:
                self._cache.move_to_end(key)
        self._make_room(0)

    def _pin(self, key: int, by: int) -> None:
        pins = self._pins.get(key, 0) + by
        if pins:
            self._pins[key] = pins
        else:
            self._pins.pop(key, None)

    def _store(self, key: int, tokens: int) -> None:
        if key not in self._cache:
            self._cache[key] = tokens
            self._cached += tokens
        if key in self._host:
            self._hosted -= self._host.pop(key)

    def _make_room(self, tokens: int) -> bool:
        """Evict the oldest unpinned blocks until `tokens` fit; whether they do."""
        room = self.hardware.kv_tokens - self._private - tokens
        if self._cached <= room:
            return True
        passed: list[int] = []
        while self._cached > room and self._cache:
            key, size = self._cache.popitem(last=False)
            if key in self._pins:
                passed.append(key)
                self._cache[key] = size
                self._cache.move_to_end(key)
                if len(passed) > len(self._pins):
                    break
                continue
            self._cached -= size
            self._keep_in_host(key, size)
        return self._cached <= room

    def _keep_in_host(self, key: int, tokens: int) -> None:
        if not self.hardware.host_tokens:
            return
        self._host[key] = tokens
        self._hosted += tokens
        while self._hosted > self.hardware.host_tokens:
            _, size = self._host.popitem(last=False)
            self._hosted -= size
