// The console: a call from the browser's microphone, its transcript and receipts; the latency of all calls; the calls.
//
// A call is the `pcm` dialect with tell=yes (see /docs).  The rule: the page shows what the server says and what it
// measures itself in the audio, and changes nothing.

const $ = (name) => document.getElementById(name);
const RATES = [48000, 24000, 16000, 8000];
const WAITS = ["transport", "endpointing", "recognition", "decision", "llm_first_token", "segment", "synthesis", "playout"];
const VOICED = 10 ** -4.5;        // mean square of a window that is voiced: -45 dBFS
const QUIET = 30;                 // windows (of 10 ms) without a voice after which a reply begins anew
const SHOWN = 1000;               // windows in the strip
const PATIENCE = 5000;            // ms for an answer of the server
const REFUSED = "The server did not take the call: it is out of reach, or takes no more.";
const LABELS = { 50: "50", 100: "100", 200: "200", 300: "300", 500: "500", 1000: "1 s", 2000: "2 s", 5000: "5 s" };

const ms = (value) => (value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// ---- the transcript ---------------------------------------------------------------------------------------------------

const transcript = {
  open: null,                     // the turn that is not over: {item, caller, agent}

  clear(title) {
    $("turns").replaceChildren();
    $("facts").replaceChildren();
    $("whose").textContent = title;
    $("empty").hidden = false;
    this.open = null;
  },

  turn() {
    if (this.open) return this.open;
    const item = element("li"), caller = element("p", "", "open"), agent = element("p", "", "agent open");
    caller.hidden = agent.hidden = true;
    item.append(caller, agent);
    $("turns").append(item);
    $("empty").hidden = true;
    return (this.open = { item, caller, agent });
  },

  say(side, text) {
    const line = this.turn()[side];
    line.textContent = text;
    line.hidden = !text;
    $("turns").scrollTop = $("turns").scrollHeight;
  },

  close(receipt) {
    const { item, caller, agent } = this.turn();
    this.say("caller", receipt.caller);
    this.say("agent", receipt.agent);
    if (receipt.confidence !== null && receipt.caller) caller.append(element("small", `${Math.round(receipt.confidence * 100)} %`));
    if (receipt.stopped_by) agent.append(element("small", `stopped by ${receipt.stopped_by}`));
    caller.classList.remove("open");
    agent.classList.remove("open");
    item.append(bill(receipt));
    $("turns").scrollTop = $("turns").scrollHeight;
    this.open = null;
  },
};

function bill(receipt) {
  const shown = element("div", "", "receipt"), bar = element("div", "", "bar"), waits = element("div", "", "waits");
  const total = receipt.voice_to_voice_ms;
  shown.append(element("b", ms(total)), bar, waits);
  for (const name of WAITS) {
    const wait = receipt.waits[name];
    if (!(wait >= 0.05)) continue;
    const part = element("i", "", name);
    part.style.width = `${Math.min(100, wait / Math.max(total, 500) * 100)}%`;
    bar.append(part);
    waits.append(element("span", `${name.replaceAll("_", " ")} ${wait.toFixed(1)}`, name));
  }
  if (receipt.saved_ms > 0) waits.append(element("em", `${ms(receipt.saved_ms)} saved by thinking ahead`));
  return shown;
}

// ---- what the audio says ----------------------------------------------------------------------------------------------

const audio = {
  levels: [[], []],               // mean squares of the last SHOWN windows: ours, the agent's
  at: 0,                          // windows since the call began
  spoke: -Infinity, answered: -Infinity,      // the last voiced window of either side
  gaps: [],                       // {from, to}: windows; what is drawn

  reset() {
    Object.assign(this, { levels: [[], []], at: 0, spoke: -Infinity, answered: -Infinity, gaps: [] });
  },

  hear(levels) {
    for (let i = 0; i < levels[0].length; i++, this.at++) {
      levels.forEach((side, which) => this.levels[which].push(side[i]));
      if (levels[1][i] > VOICED) {
        if (this.at - this.answered >= QUIET && this.spoke > this.answered) this.measured(this.spoke + 1, this.at);
        this.answered = this.at;
      }
      if (levels[0][i] > VOICED) this.spoke = this.at;
    }
    this.levels.forEach((side) => side.splice(0, side.length - SHOWN));
    this.gaps = this.gaps.filter((gap) => gap.to > this.at - SHOWN);
  },

  measured(from, to) {
    this.gaps.push({ from, to });
    $("gap").textContent = `${(to - from) * 10} ms from your last voiced window to the answer, measured here`;
  },

  draw() {
    const canvas = $("strip"), scale = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    const width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const paint = canvas.getContext("2d"), step = width / SHOWN, middle = height / 2, first = this.at - this.levels[0].length;
    const x = (window) => width - (this.at - window) * step;
    paint.clearRect(0, 0, width, height);
    paint.fillStyle = style.getPropertyValue("--line");
    paint.fillRect(0, middle, width, scale);
    ["--you", "--agent"].forEach((colour, side) => {
      paint.fillStyle = style.getPropertyValue(colour);
      this.levels[side].forEach((level, i) => {
        const size = Math.max(0, 1 + Math.log10(level + 1e-9) / 6) * middle;
        paint.fillRect(x(first + i), side ? middle : middle - size, step + .5, size);
      });
    });
    paint.font = `${11 * scale}px system-ui`;
    for (const { from, to } of this.gaps) {
      paint.fillStyle = style.getPropertyValue("--good");
      paint.fillRect(x(from), middle - 2 * scale, Math.max(1, x(to) - x(from)), 4 * scale);
      paint.fillText(`${(to - from) * 10} ms`, x(from), 14 * scale);
    }
  },
};

// ---- the call ---------------------------------------------------------------------------------------------------------

let call = null;                  // {context, socket, line, stream, began, open}: while there is one
let dialling = false;             // one is being made

const EVENTS = {
  hypothesis: ({ text }) => transcript.say("caller", text),
  recognition: ({ text }) => transcript.say("caller", text),
  replying: ({ text }) => transcript.say("agent", text),
  receipt: (receipt) => { transcript.close(receipt); $("state").textContent = receipt.state; },
  mark: ({ name }) => call.line.port.postMessage({ mark: name }),
  clear: () => call.line.port.postMessage("clear"),
  transfer: ({ target }) => { $("trouble").textContent = `The agent hands the call over to ${target}.`; },
};

function receive({ data }) {
  if (data instanceof ArrayBuffer) return call.line.port.postMessage(data, [data]);
  const event = JSON.parse(data);
  EVENTS[event.event]?.(event);
}

async function microphone() {
  if (!navigator.mediaDevices) throw new Error("A browser gives its microphone to pages of https or of localhost only.");
  return navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, autoGainControl: true, noiseSuppression: false } });
}

async function openLine(stream) {
  let context = new AudioContext();
  if (!RATES.includes(context.sampleRate)) {
    context.close();
    context = new AudioContext({ sampleRate: 48000 });
  }
  await context.audioWorklet.addModule("/console/line.js").catch(() => {
    context.close();
    throw new Error(REFUSED);
  });
  const line = new AudioWorkletNode(context, "line", { outputChannelCount: [1] });
  context.createMediaStreamSource(stream).connect(line).connect(context.destination);
  return { context, line, stream };
}

async function dial() {
  if (dialling) return;
  dialling = true;                // a button that is disabled would lose the keyboard's focus
  $("trouble").textContent = "";
  let stream = null;
  try {
    stream = await microphone();
    const mine = (call = { ...(await openLine(stream)), began: performance.now() });
    const agent = $("agent").value, id = `console-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
    const url = new URL(`/ws/pcm${agent ? `/${agent}` : ""}?rate=${call.context.sampleRate}&tell=yes&call_id=${id}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (mine.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => { if (call === mine) receive(event); };
    socket.onclose = ({ code, reason }) => {        // that of a call before this one may come late
      if (call === mine) hangUp(code === 1000 ? "" : reason || (mine.open ? `The call ended (${code}).` : REFUSED));
    };
    socket.onopen = () => { if (call === mine) begun(id); };
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    hangUp(error.name === "NotAllowedError" ? "The microphone is not allowed; allow it beside the page's address." : error.message);
  }
  dialling = false;
}

function begun(id) {
  call.open = true;
  calls.watch(null);
  audio.reset();
  transcript.clear(`This call (${id})`);
  $("call").textContent = "Hang up";
  $("call").classList.add("live");
  $("keys").querySelectorAll("button").forEach((key) => { key.disabled = false; });
  call.line.port.onmessage = ({ data }) => {
    if (call?.socket.readyState !== WebSocket.OPEN) return;
    call.socket.send(data.pcm);
    data.marks.forEach((name) => call.socket.send(JSON.stringify({ event: "mark", name })));
    audio.hear(data.levels);
  };
}

function hangUp(why = "") {
  const over = call;
  call = null;
  if (over?.socket?.readyState === WebSocket.OPEN) over.socket.send(JSON.stringify({ event: "end" }));
  over?.socket?.close(1000);
  over?.stream.getTracks().forEach((track) => track.stop());
  over?.context.close();
  $("trouble").textContent = why || $("trouble").textContent;
  $("call").textContent = "Call";
  $("call").classList.remove("live");
  $("keys").querySelectorAll("button").forEach((key) => { key.disabled = true; });
}

// ---- all calls --------------------------------------------------------------------------------------------------------

const calls = {
  watched: null,                  // the id of a call of somebody else whose transcript is shown
  seen: "",                       // its record as it was shown last
  shown: "",                      // the list as it was

  watch(id) {
    this.watched = id;
    this.seen = "";
    if (id) this.look();
  },

  async look() {
    const id = this.watched, answer = await fetch(`/calls/${encodeURIComponent(id)}`), text = await answer.text();
    if (!answer.ok || id !== this.watched || text === this.seen) return;
    const record = JSON.parse(text);
    this.seen = text;
    transcript.clear(`${record.dialect} call ${record.id}`);
    record.turns.forEach((receipt) => transcript.close(receipt));
    for (const [name, value] of Object.entries(record.facts)) $("facts").append(element("dt", name), element("dd", String(value)));
  },

  show(list) {
    const said = JSON.stringify(list), focused = document.activeElement?.closest("#calls button")?.textContent;
    if (said === this.shown) return;
    this.shown = said;
    $("nocalls").hidden = list.length > 0;
    $("calls").tBodies[0].replaceChildren(...list.map((entry) => {
      const row = element("tr"), name = element("td"), open = element("button", entry.id);
      open.type = "button";
      open.title = `${entry.dialect} call ${entry.id}`;
      open.onclick = () => { if (!call) this.watch(entry.id); };
      name.append(open);
      const state = element("td", entry.state, entry.live ? "live" : "");
      row.append(name, state, element("td", `${entry.turns} turn${entry.turns === 1 ? "" : "s"}, ${ms(entry.voice_to_voice_ms)}`));
      return row;
    }));
    [...$("calls").querySelectorAll("button")].find((open) => open.textContent === focused)?.focus();
  },
};

// ---- the server -------------------------------------------------------------------------------------------------------

function drawHistogram(text) {
  const found = [...text.matchAll(/^opusagent_voice_to_voice_seconds_bucket\{le="([^"]+)"\} (\d+)/gm)];
  let before = 0;
  const bars = found.map(([, bound, count]) => {
    const bar = { bound: bound === "+Inf" ? Infinity : Number(bound) * 1000, count: count - before };
    before = Number(count);
    return bar;
  }).filter((bar) => bar.bound >= 25);
  const most = Math.max(1, ...bars.map((bar) => bar.count)), step = 320 / Math.max(1, bars.length);
  const make = (name, fields, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(fields).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  };
  $("histogram").replaceChildren(make("line", { x1: 0, x2: 320, y1: 130, y2: 130 }), ...bars.flatMap((bar, i) => {
    const height = bar.count / most * 110, middle = (i + .5) * step;
    return [make("rect", { x: i * step + 1, y: 130 - height, width: step - 2, height, rx: 2 }),
            make("text", { x: (i + 1) * step, y: 143, "text-anchor": "middle" }, LABELS[bar.bound] ?? ""),
            ...(bar.count ? [make("text", { x: middle, y: 126 - height, "text-anchor": "middle" }, bar.count)] : [])];
  }));
}

async function look() {
  try {
    const [health, metrics, list] = await Promise.all(["/health", "/metrics", "/calls"].map((path) => fetch(path, { signal: AbortSignal.timeout(PATIENCE) })));
    const { status, active_calls, voice_to_voice, latency } = await health.json();
    $("status").textContent = $("status").className = status;
    $("active").textContent = active_calls;
    $("turn50").textContent = ms(voice_to_voice.p50_ms || null);
    $("turn99").textContent = ms(voice_to_voice.p99_ms || null);
    $("frame99").textContent = ms(latency.p99_ms || null);
    drawHistogram(await metrics.text());
    calls.show((await list.json()).calls);
    if (calls.watched && !call) await calls.look();
  } catch {
    $("status").textContent = "out of reach";
    $("status").className = "gone";
  }
  setTimeout(look, 2000);
}

function draw() {
  audio.draw();
  const seconds = call ? Math.floor((performance.now() - call.began) / 1000) : 0;
  if (call) $("clock").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  requestAnimationFrame(draw);
}

for (const digit of "123456789*0#") {
  const key = element("button", digit);
  key.type = "button";
  key.disabled = true;
  key.onclick = () => call?.socket.send(JSON.stringify({ event: "dtmf", digit }));
  $("keys").append(key);
}
$("call").onclick = () => (call ? hangUp() : dial());
window.onpagehide = () => hangUp();
look();
draw();
