// Sessile's client for browsers: one ES module, without a build step. A router serves it at
// /sessile/client.js; its server.cors_origins must list the page's origin if that is not its own.
//
//     import { Session } from "http://localhost:8000/sessile/client.js";
//     const session = new Session({ system: "Be brief." });
//     if (session.interrupted) for await (const event of session.resume()) show(session.text);
//     for await (const event of session.send("Hello!")) show(session.text);
//
// A turn goes over the Responses WebSocket and sends only what is new. It outlives its connection
// and its page: what is needed to take it up again is kept in `storage`. A response is taken up
// from its first event, and as much text as was said already is passed over, so that nothing is
// lost or doubled whichever router tells it.

const FIRST_MS = 50;
const LONGEST_MS = 5000;
const KEY_PROTOCOL = "openai-insecure-api-key.";
const PREFIX = "sessile:";
const TOO_OLD = "websocket_connection_limit_reached";

/** An error that the router tells of; `code` is its stable name. */
export class SessileError extends Error {
  constructor(told) {
    super(told?.message ?? "the router gave no reason");
    this.code = told?.code ?? "";
  }
}

class Lost extends Error {}

/**
 * One conversation. `tools` are `{name: {description, parameters, run}}`, run side by side; `run`
 * is given the arguments and gives what the model is told, or a promise of it. `name` tells the
 * sessions of one page apart, `reconnectMs` is how long a router that was lost is looked for.
 * `whenBusy` is what becomes of a turn while another client's runs: "queue", "fork" or "refuse".
 */
export class Session {
  #url; #apiKey; #system; #tools; #storage; #name; #reconnectMs; #maxRounds; #whenBusy;
  #options;
  #state; #socket = null; #queue = null; #busy = false; #bringing = new Set();

  constructor({
    url = new URL(import.meta.url).origin, model = null, system = null, apiKey = null, tools = {},
    storage = globalThis.sessionStorage, name = "chat", reconnectMs = 30000, maxRounds = 32,
    whenBusy = null,
  } = {}) {
    this.#options = { url, system, apiKey, tools, storage, reconnectMs, maxRounds, whenBusy };
    this.#url = url.replace(/\/(v1\/?)?$/, "");
    this.#apiKey = apiKey;
    this.#system = system;
    this.#tools = tools;
    this.#storage = storage;
    this.#name = name;
    this.#reconnectMs = reconnectMs;
    this.#maxRounds = maxRounds;
    this.#whenBusy = whenBusy;
    const kept = storage?.getItem(PREFIX + name);
    this.#state = kept ? JSON.parse(kept) : begun(model);
  }

  /** The session's id, as every client of the router may attach to it. */
  get id() { return this.#state.id; }

  /** Its name, by which a page finds it again. */
  get name() { return this.#name; }

  /** Whether a turn runs that nobody listens to, since it was running when the page was left, or is
   * in the background: `resume` goes on with it. */
  get interrupted() { return this.#state.turn !== null && !this.#busy; }

  /** All that the model has said in the newest turn. */
  get text() { return this.#state.turn?.text ?? this.#state.text ?? ""; }

  /** Run a turn; gives {type: "text", text}, {type: "call", ...}, {type: "result", ...} and at
   * last {type: "done", text, response}. `options` are further fields of `response.create`. */
  async *send(text, options = {}) {
    this.#state.turn = this.#first(text, options);
    yield* this.#run();
  }

  /** Say something without asking for an answer, so that the replica has read it when the next
   * turn comes; gives the usage. */
  async prewarm(text, options = {}) {
    for await (const event of this.send(text, { ...options, generate: false })) {
      if (event.type === "done") return event.response.usage;
    }
  }

  /** Begin a turn that runs at the router by itself, whether or not the page goes on. It is
   * accepted when this returns; `resume` listens to it, here or in the page's next life, and runs
   * its tools. */
  async background(text, options = {}) {
    const turn = this.#state.turn = { ...this.#first(text, options), background: true };
    try {
      await this.#findModel();
      this.#save();
      await this.#begin(turn);
    } catch (error) {
      if (!lostLine(error)) this.#state.turn = null; // else it may run: resume asks again
      throw error;
    } finally {
      this.#save();
    }
  }

  /** `n` sessions that go on from here, each its own way; this one goes on too. A page that was
   * reloaded finds each by its `name`. */
  async fork(n = 1) {
    const { model, head } = this.#state;
    const made = head === null
      ? Array.from({ length: n }, () => begun(model))
      : (await this.#post(`/sessile/v1/sessions/${encodeURIComponent(this.id)}/fork`, { n }))
        .sessions.map(({ session }) => ({ ...begun(model), id: session, head }));
    return made.map((state) => {
      const child = new Session({ ...this.#options, name: `${this.#name}/${state.id}` });
      child.#state = state;
      child.#save();
      return child;
    });
  }

  /** Go on with the turn that was running when the page was left, or runs in the background. */
  async *resume() {
    if (this.#state.turn === null) return;
    lose(this.#state.turn);
    yield* this.#run();
  }

  /** Say something into the running turn: the model stops where that is safe, and goes on with it
   * in mind. It is said once, whatever becomes of its connection, at the latest when the answer that
   * runs has ended. */
  steer(text) {
    if (this.#state.turn === null) throw new Error("no turn is running: send it");
    const steer = { text, key: token(), target: null, id: null, refused: null };
    this.#state.turn.steers.push(steer);
    this.#save();
    this.#bringSteers();
  }

  /** Stop the running turn at the router; the session stays as it was before. */
  async cancel() {
    const turn = this.#state.turn;
    if (turn?.response) {
      await this.#fetch(`/sessile/v1/turns/${turn.response}/cancel`, { method: "POST" });
    }
  }

  /** Forget the conversation here; the next turn begins another. */
  reset() {
    this.#socket?.close();
    this.#state = begun(this.#state.model);
    this.#save();
  }

  // -- a turn

  #first(text, options) {
    if (this.#state.turn !== null) throw new Error("a turn is running: resume it, or cancel it");
    return this.#round([message(text)], this.#state.head, { options });
  }

  #round(input, parent, { options, text = "", rounds = 0, steers = [] }) {
    const said = { said: "", skip: 0, hole: false, response: null, ended: null, calls: [] };
    return { input, parent, options, text, rounds, steers, key: token(), ...said };
  }

  async *#run() {
    if (this.#busy) throw new Error("a turn of this session is listened to already");
    this.#busy = true;
    try {
      await this.#findModel();
      for (;;) {
        this.#save();
        yield* this.#listen();
        const turn = this.#state.turn;
        const results = [];
        const goesOn = turn.ended.status === "completed" && turn.rounds < this.#maxRounds;
        if (goesOn && turn.calls.length) {
          results.push(...(await Promise.all(turn.calls.map((call) => this.#call(call)))));
          for (const { call, output } of results) yield { type: "result", id: call.call_id, output };
        }
        const waiting = turn.steers.filter((steer) => steer.target === null);
        if (turn.ended.status === "cancelled" || !(results.length || waiting.length)) break;
        const input = [
          ...results.map(({ call, output }) => (
            { type: "function_call_output", call_id: call.call_id, output })),
          ...waiting.map((steer) => message(steer.text)),
        ];
        const steers = turn.steers.filter((steer) => steer.target !== null);
        this.#state.turn = this.#round(input, turn.ended.id, {
          ...turn, steers, rounds: turn.rounds + Boolean(results.length),
        });
      }
      const { ended, text, said } = this.#state.turn;
      if (ended.status !== "cancelled") this.#state.head = ended.id;
      this.#state.text = text;
      this.#state.turn = null;
      yield { type: "done", text: said, response: ended };
    } catch (error) {
      if (!(error instanceof Lost)) this.#state.turn = null; // it cannot be gone on with
      throw error;
    } finally {
      this.#busy = false;
      this.#save();
    }
  }

  /** The events of one response, and of those that follow it by themselves. */
  async *#listen() {
    let lostAt = null;
    let tries = 0;
    while (!this.#over()) {
      const turn = this.#state.turn;
      try {
        if (turn.background && !turn.response) await this.#begin(turn);
        for await (const event of turn.response ? this.#follow(turn) : this.#ask(turn)) {
          lostAt = null;
          tries = 0;
          yield* this.#take(turn, event);
          // Not each word: what was said since is told again when the response is taken up.
          if (event.type !== "response.output_text.delta") this.#save();
          if (this.#over()) return;
          this.#bringSteers();
        }
      } catch (error) {
        if (!lostLine(error)) throw error;
        lose(turn);
        if (this.#over()) return;
        lostAt ??= Date.now();
        if (Date.now() - lostAt > this.#reconnectMs) {
          throw new Lost(`no router came back within ${this.#reconnectMs / 1000} s; resume later`);
        }
        const pause = Math.min(FIRST_MS * 2 ** tries++, LONGEST_MS) * (0.5 + Math.random());
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }

  #over() {
    const { ended, calls, steers } = this.#state.turn;
    if (ended === null) return false;
    const calling = ended.status === "completed" && calls.length > 0;
    return calling || !steers.some((steer) => steer.target === ended.id);
  }

  *#take(turn, event) {
    if (event.type.startsWith("response.steer.")) return told(turn, event);
    turn.heard = turn.response;
    switch (event.type) {
      case "response.created":
        if (event.response.id !== turn.response) {
          const before = event.response.previous_response_id;
          turn.steers = turn.steers.filter((s) => s.id === null || s.target !== before);
          begin(turn, event.response.id);
          turn.heard = turn.response;
        }
        break;
      case "response.output_text.delta":
        if (!turn.hole) yield* say(turn, event.delta);
        break;
      case "sessile.gap":
        turn.hole = true; // what is missing comes with the whole response
        break;
      case "response.output_item.done":
        yield* called(turn, event.item);
        break;
      case "response.completed":
      case "response.incomplete": {
        const items = event.response.output ?? [];
        const whole = items.filter((item) => item.type === "message")
          .flatMap((item) => item.content ?? []).map((part) => part.text ?? "").join("");
        turn.skip = 0;
        if (whole.startsWith(turn.said)) yield* say(turn, whole.slice(turn.said.length));
        for (const item of items) yield* called(turn, item);
        if (event.successor) {
          const { id, steers } = event.successor;
          turn.steers = turn.steers.filter((steer) => !steers.includes(steer.key));
          begin(turn, id);
        } else {
          turn.ended = event.response;
        }
        if (turn.followed || event.successor) lose(turn);
        break;
      }
      case "response.failed": {
        // The API knows few codes for a failed response; the router's own is its type.
        const { type, code, message } = event.response.error ?? {};
        throw new SessileError({ message, code: type ?? code });
      }
      case "error":
        if ((event.error ?? event).code === TOO_OLD && turn.response === null) {
          this.#socket?.close();
          throw new Lost("the connection is too old");
        }
        throw new SessileError(event.error ?? event);
    }
  }

  async #call(call) {
    try {
      const tool = this.#tools[call.name];
      if (!tool) throw new Error(`there is no tool named ${call.name}`);
      const output = await tool.run(JSON.parse(call.arguments || "{}"));
      return { call, output: typeof output === "string" ? output : JSON.stringify(output) };
    } catch (error) {
      return { call, output: String(error) };
    }
  }

  // -- the wire

  async #findModel() {
    this.#state.model ??= (await this.#json("/v1/models")).data[0]?.id;
  }

  #body(turn) {
    const tools = Object.entries(this.#tools).map(([name, { description, parameters }]) => (
      { type: "function", name, description, parameters, strict: false }));
    return {
      ...turn.options, model: this.#state.model, input: turn.input, session_id: this.#state.id,
      ...(this.#system === null ? {} : { instructions: this.#system }),
      ...(tools.length ? { tools } : {}),
      ...(turn.parent === null ? {} : { previous_response_id: turn.parent }),
    };
  }

  /** Have a turn accepted that runs by itself; asked for again, it is not run again. */
  async #begin(turn) {
    const body = { ...this.#body(turn), background: true };
    const made = await this.#post("/v1/responses", body, { "Idempotency-Key": turn.key });
    turn.response = made.id;
    this.#save();
  }

  /** Ask over the WebSocket, and give what comes; a frame that is sent again is not run again. */
  async *#ask(turn) {
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      lose(turn);
      await this.#open();
    }
    const { socket, queue } = { socket: this.#socket, queue: this.#queue };
    queue.events.length = 0;
    const asked = { ...this.#body(turn), type: "response.create", idempotency_key: turn.key };
    socket.send(JSON.stringify(asked));
    for (;;) {
      while (queue.events.length) yield queue.events.shift();
      if (socket.readyState !== WebSocket.OPEN) throw new Lost("the connection was closed");
      await new Promise((resolve) => { queue.wake = resolve; });
    }
  }

  async #open() {
    const busy = this.#whenBusy === null ? "" : `&when_busy=${encodeURIComponent(this.#whenBusy)}`;
    const address = `ws${this.#url.slice(4)}/v1/responses?on_disconnect=detach${busy}`;
    const protocols = this.#apiKey === null ? [] : [KEY_PROTOCOL + this.#apiKey];
    const socket = new WebSocket(address, protocols);
    const queue = { events: [], wake: () => {} };
    socket.onmessage = ({ data }) => { queue.events.push(JSON.parse(data)); queue.wake(); };
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onclose = () => { reject(new Lost("no router answers")); queue.wake(); };
    });
    this.#socket = socket;
    this.#queue = queue;
  }

  /** Bring what waits to the running response: over its connection, or where that is gone to
   * whichever router answers, also what it lost without an answer. */
  #bringSteers() {
    const turn = this.#state.turn;
    if (!turn?.response || turn.ended || turn.heard !== turn.response) return;
    const isOpen = this.#socket?.readyState === WebSocket.OPEN;
    for (const steer of turn.steers) {
      if (steer.target === null && steer.refused !== turn.response) {
        steer.target = turn.response;
        if (isOpen && !turn.followed) {
          this.#socket.send(JSON.stringify({
            type: "response.steer", previous_response_id: turn.response, input: steer.text,
            idempotency_key: steer.key,
          }));
        }
      }
      if (turn.followed && steer.target === turn.response && steer.id === null) {
        this.#bring(turn, steer);
      }
    }
  }

  async #bring(turn, steer) {
    if (this.#bringing.has(steer.key)) return;
    this.#bringing.add(steer.key);
    try {
      const body = { input: steer.text, idempotency_key: steer.key };
      told(turn, await this.#post(`/sessile/v1/turns/${steer.target}/steer`, body));
    } catch (error) {
      if (!lostLine(error)) refuse(steer); // else it is brought again with the next event
    } finally {
      this.#bringing.delete(steer.key);
      this.#save();
    }
  }

  /** Take a response up over HTTP. */
  async *#follow(turn) {
    const { response } = turn;
    Object.assign(turn, { skip: turn.said.length, hole: false, followed: true });
    const answer = await this.#fetch(`/v1/responses/${response}?stream=true`);
    if (answer.status >= 500) throw new Lost(`the router answered ${answer.status}`);
    if (!answer.ok) {
      const found = await this.#json(`/v1/responses/${response}`);
      if (found.status === "in_progress" || found.status === "queued") throw new Lost("it runs");
      const kind = found.status === "cancelled" ? "incomplete" : found.status;
      yield { type: `response.${kind}`, response: found };
      return;
    }
    let rest = "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Lost("the stream ended before the turn's end");
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "));
        if (data) yield JSON.parse(data.slice(6));
        if (turn.response !== response) return; // another follows it by itself
      }
    }
  }

  #fetch(path, options = {}) {
    const key = this.#apiKey === null ? {} : { Authorization: `Bearer ${this.#apiKey}` };
    return fetch(this.#url + path, { ...options, headers: { ...options.headers, ...key } });
  }

  async #json(path, options = {}) {
    const answer = await this.#fetch(path, options);
    const body = await answer.json();
    if (!answer.ok) throw new SessileError(body.error);
    return body;
  }

  #post(path, body, headers = {}) {
    const types = { "Content-Type": "application/json", ...headers };
    return this.#json(path, { method: "POST", headers: types, body: JSON.stringify(body) });
  }

  #save() { this.#storage?.setItem(PREFIX + this.#name, JSON.stringify(this.#state)); }
}

/** What is kept of a session that has said nothing yet. */
function begun(model) {
  return { id: `ses_${token()}`, model, head: null, turn: null };
}

/** Whether an error says no more than that nobody answered: `fetch` has its own for that. */
function lostLine(error) {
  return error instanceof Lost || error instanceof TypeError;
}

/** Listen to another response. */
function begin(turn, response) {
  Object.assign(turn, { response, said: "", skip: 0, hole: false, ended: null, calls: [] });
}

/** The connection is gone, and with it the steers that did not come into a response; but for the
 * running one, which says at its end what it took. */
function lose(turn) {
  for (const steer of turn.steers) {
    if (turn.ended || steer.target !== turn.response) steer.target = steer.id = null;
  }
}

function told(turn, event) {
  const key = event.steer.idempotency_key;
  const sent = turn.steers.find((steer) => steer.target !== null && steer.key === key);
  if (sent && event.type === "response.steer.accepted") sent.id = event.steer.id;
  if (sent && event.type === "response.steer.failed") refuse(sent);
}

function refuse(steer) {
  Object.assign(steer, { refused: steer.target, target: null, id: null });
}

function* say(turn, delta) {
  const skipped = Math.min(turn.skip, delta.length);
  turn.skip -= skipped;
  const text = delta.slice(skipped);
  if (!text) return;
  turn.said += text;
  turn.text += text;
  yield { type: "text", text };
}

function* called(turn, item) {
  if (item?.type !== "function_call") return;
  if (turn.calls.some((call) => call.call_id === item.call_id)) return;
  turn.calls.push(item);
  yield { type: "call", id: item.call_id, name: item.name, arguments: item.arguments };
}

function message(text) {
  return { type: "message", role: "user", content: text };
}

function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => (
    byte.toString(16).padStart(2, "0"))).join("");
}
