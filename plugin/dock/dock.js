// The dock: shows what the program does and sends what the user wants. One state comes in over a websocket; what the user
// does is shown at once and corrected by the next state.

const $ = (id) => document.getElementById(id);
const RETRY_FIRST_S = 0.5, RETRY_MAX_S = 8, PREVIEW_EVERY_MS = 300, SEND_EVERY_MS = 60, MINUTE = 120;
const CAMERA_WARNING = "Everybody who watches will see you without any effect.";

let state = null, socket = null, retryS = RETRY_FIRST_S, figures = [], numbers = {}, pictures = new Map();
let pending = null, sendTimer = 0, toastTimer = 0, previewBusy = false;

// --- the secret: in the fragment, which is never sent; kept there, so that OBS finds it again after a restart

function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) sessionStorage.setItem("token", given);
  return given ?? sessionStorage.getItem("token") ?? "";
}

function ask(path) {
  return fetch(path, { headers: { Authorization: `Bearer ${token()}` }, cache: "no-store" });
}

// --- the link

function connect() {
  link("connecting", "Connecting…");
  const own = new WebSocket(`ws://${location.host}/api/live`);
  socket = own;
  own.onopen = () => own.send(JSON.stringify({ token: token() }));
  own.onmessage = (event) => receive(JSON.parse(event.data));
  own.onclose = (event) => { if (socket === own) lost(event); };
}

function lost(event) {
  socket = null;
  if (event.code === 4401) return refuse();
  const waitS = retryS;
  retryS = Math.min(RETRY_MAX_S, retryS * 1.6);
  countDown(Date.now() + waitS * 1000);
}

function countDown(untilMs) {
  const left = Math.ceil((untilMs - Date.now()) / 1000);
  if (left <= 0) return connect();
  link("off", `Not running · again in ${left} s`);
  setTimeout(countDown, Math.min(1000, untilMs - Date.now()), untilMs);
}

function refuse() {
  link("refused", "Refused");
  gate("This page's key is not right", "Open the address that “instantvision run” shows: it carries the key of your program.");
}

function link(kind, text) {
  document.body.dataset.link = kind;
  if ($("link").lastChild.textContent !== text) $("link").lastChild.textContent = text;
  if (kind === "on") gate();
}

function gate(title, text) {
  $("gate").hidden = !title;
  $("gate").children[0].textContent = title ?? "";
  $("gate").children[1].textContent = text ?? "";
}

function receive(message) {
  if (message.type === "error") { toast(message.error); message = { ...message.state, type: "state" }; }
  if (message.type === "state") {
    retryS = RETRY_FIRST_S;
    state = message;
    link("on", "Live");
    // What the user is doing right now is newer than this state.
    show(pending ? { ...state, ...pending } : state);
  }
  if ("obs" in message) showObs(message.obs);
  if (message.type === "stats") { showNumbers(message.thumbnails); showStats(message.stats); }
}

// --- changes

function change(values) {
  pending = { ...pending, ...values };
  show({ ...state, ...pending });
  if (!sendTimer) { flush(); sendTimer = setTimeout(() => { sendTimer = 0; flush(); }, SEND_EVERY_MS); }
}

function flush() {
  if (!pending || socket?.readyState !== WebSocket.OPEN) { pending = null; return; }
  socket.send(JSON.stringify({ type: "apply", change: pending }));
  state = { ...state, ...pending };
  pending = null;
}

function command(values) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "apply", change: values }));
}

// --- the mix: the first look, and maybe a second one

function parts(text) {
  return text.split(",").map((part) => { const [name, weight] = part.split(":"); return { name, weight: Number(weight ?? 1) }; });
}

function mix(first, second, balance) {
  if (!second || second === first) return first;
  return `${first}:${(1 - balance).toFixed(2)},${second}:${balance.toFixed(2)}`;
}

const title = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("-", " ");

function choose(name) {
  const [, second] = parts(state.preset);
  const balance = second ? second.weight : 0.5;
  change({ preset: mix(name, second?.name, balance) });
}

// --- showing the state

function show(now) {
  if (galleryKey() !== now.presets.map((look) => look.name).join()) buildGallery(now.presets);
  const [first, second] = parts(now.preset);
  for (const card of $("gallery").children) {
    const on = card.dataset.name === first.name;
    card.setAttribute("aria-checked", on);
    card.tabIndex = on ? 0 : -1;
    card.classList.toggle("second", card.dataset.name === second?.name);
  }
  $("look-name").textContent = second ? `${title(first.name)} + ${title(second.name)}` : title(first.name);
  set("second", second?.name ?? "");
  set("balance", second ? second.weight : 0.5, (value) => `${Math.round(value * 100)} %`);
  $("balance-row").hidden = !second;
  set("strength", now.strength, (value) => `${Math.round(value * 100)} %`);
  set("fade", now.fade_s, (value) => `${Number(value).toFixed(1)} s`);
  set("steps", now.steps); set("seed", now.seed); set("temporal", now.temporal); set("panic-mode", now.panic_mode);
  showButtons(now);
}

function set(id, value, words) {
  const input = $(id);
  // A number that is being typed is not overwritten.
  if (input.type !== "number" || document.activeElement !== input) input.value = value;
  if (words) document.querySelector(`output[for="${id}"]`).textContent = words(value);
}

const SHOWN = { slate: "The slate is shown", freeze: "The picture is frozen", "last-look": "The last look is shown", camera: "Your real camera is shown" };
const PANIC = { slate: "shows the slate", freeze: "freezes the picture", "last-look": "keeps the last look", camera: "shows the real camera" };

function showButtons(now) {
  const away = now.show !== "effect", bare = now.show === "camera";
  $("panic").setAttribute("aria-pressed", away && !bare);
  $("panic").children[0].textContent = away && !bare ? "Back to the effect" : "Panic";
  $("panic").children[1].textContent = away && !bare ? SHOWN[now.show].toLowerCase() : PANIC[now.panic_mode];
  $("bypass").setAttribute("aria-pressed", bare);
  $("bypass").textContent = bare ? "End bypass" : "Bypass…";
  $("banner").hidden = !away;
  $("banner").textContent = SHOWN[now.show] ?? "";
}

// --- the gallery: one stop of the tab key, arrows inside

const galleryKey = () => [...$("gallery").children].map((card) => card.dataset.name).join();

function buildGallery(presets) {
  $("gallery").replaceChildren(...presets.map(card));
  $("second").replaceChildren(new Option("nothing", ""), ...presets.map((look) => new Option(title(look.name), look.name)));
  for (const look of presets) loadThumbnail(look.name);
}

function card(look) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "look", title: look.description });
  button.dataset.name = look.name;
  button.setAttribute("role", "radio");
  const picture = document.createElement("img"), name = document.createElement("span");
  picture.alt = "";
  name.textContent = title(look.name);
  button.append(picture, name);
  button.onclick = () => choose(look.name);
  return button;
}

async function loadThumbnail(name) {
  const answer = await ask(`/api/thumbnail/${encodeURIComponent(name)}.jpg`).catch(() => null);
  const picture = document.querySelector(`.look[data-name="${CSS.escape(name)}"] img`);
  if (answer?.ok && picture) await put(picture, await answer.blob());
}

function showNumbers(newer) {
  for (const [name, number] of Object.entries(newer)) if (numbers[name] !== number) loadThumbnail(name);
  numbers = newer;
}

$("gallery").onkeydown = (event) => {
  const cards = [...$("gallery").children], at = cards.indexOf(document.activeElement);
  const columns = getComputedStyle($("gallery")).gridTemplateColumns.split(" ").length;
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: cards.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  if (!cards[to]) return;
  cards[to].focus();
  choose(cards[to].dataset.name);
};

// --- pictures: fetched with the token, shown from memory

async function put(picture, blob) {
  const old = pictures.get(picture), url = URL.createObjectURL(blob);
  pictures.set(picture, url);
  picture.src = url;
  picture.hidden = false;
  await picture.decode().catch(() => {});
  if (old) URL.revokeObjectURL(old);
}

async function poll() {
  const visible = !document.hidden && document.body.dataset.link === "on" && $("screen").getBoundingClientRect().bottom > 0;
  if (!visible || previewBusy) return;
  previewBusy = true;
  const side = Math.min(1024, Math.max(160, Math.round($("screen").clientWidth / 80) * 80));
  const wanted = Number($("split").value) > 0 ? ["before", "after"] : ["after"];
  for (const which of wanted) {
    const answer = await ask(`/api/preview/${which}.jpg?side=${side}`).catch(() => null);
    if (answer?.status === 200) await put($(which), await answer.blob());
  }
  const after = $("after");
  $("nothing").hidden = !after.hidden;
  if (after.naturalWidth) $("screen").style.setProperty("--aspect", `${after.naturalWidth} / ${after.naturalHeight}`);
  previewBusy = false;
}

$("split").oninput = (event) => {
  $("screen").style.setProperty("--split", `${event.target.value}%`);
  showTags();
};

function showTags() {
  const split = Number($("split").value);
  document.querySelector(".tag.left").hidden = split < 15;
  document.querySelector(".tag.right").hidden = split > 85 || split < 15;
  $("seam").hidden = false;
}

// --- figures

function showStats(stats) {
  const recent = stats?.recent, waiting = !stats?.settings ? "Starting" : stats.status ? `Waiting: ${stats.status}` : "Live";
  link("on", stats ? waiting : "Live");
  $("fps").textContent = recent ? Math.round(recent.fps_out) : "–";
  $("latency").textContent = recent?.latency_ms.count ? Math.round(recent.latency_ms.p50) : "–";
  figures.push(recent ? [recent.fps_out, recent.latency_ms.p50] : [0, 0]);
  figures = figures.slice(-MINUTE);
  plot();
}

// How OBS does, where the program follows it.
function showObs(obs) {
  $("obs").hidden = !obs;
  if (!obs) return;
  $("obs").dataset.reached = obs.connected;
  const words = obs.connected ? obs.scene || "connected" : obs.status;
  if ($("obs").children[1].textContent !== words) $("obs").children[1].textContent = words;
  $("obs").children[1].title = words;
  for (const doing of ["streaming", "recording"]) $(doing).hidden = !(obs.connected && obs[doing]);
}

function plot() {
  const canvas = $("plot"), ratio = devicePixelRatio || 1, wide = canvas.clientWidth, high = canvas.clientHeight;
  canvas.width = wide * ratio; canvas.height = high * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.strokeStyle = "#2f3238";
  for (const y of [0.5, high / 2, high - 0.5]) { pen.beginPath(); pen.moveTo(0, y); pen.lineTo(wide, y); pen.stroke(); }
  curve(pen, wide, high, 1, "#8fb6e8");
  curve(pen, wide, high, 0, "#f2a65a");
}

function curve(pen, wide, high, which, colour) {
  const top = Math.max(which ? 100 : 60, ...figures.map((pair) => pair[which])) * 1.1;
  pen.strokeStyle = colour; pen.lineWidth = 1.5; pen.lineJoin = "round";
  pen.beginPath();
  figures.forEach((pair, index) => pen.lineTo(wide - (figures.length - 1 - index) * wide / (MINUTE - 1), high - 1 - pair[which] / top * (high - 2)));
  pen.stroke();
}

// --- the rest of the controls

const sends = (id, make) => { $(id).oninput = (event) => change(make(event.target.value)); };
sends("strength", (value) => ({ strength: Number(value) }));
sends("fade", (value) => ({ fade_s: Number(value) }));
sends("temporal", (value) => ({ temporal: value }));
sends("second", (name) => ({ preset: mix(parts(state.preset)[0].name, name, 0.5) }));
sends("balance", (value) => { const [first, second] = parts(state.preset); return { preset: mix(first.name, second?.name, Number(value)) }; });
for (const id of ["steps", "seed"]) $(id).onchange = (event) => { if (event.target.value !== "") change({ [id]: Number(event.target.value) }); };
$("dice").onclick = () => change({ seed: Math.floor(Math.random() * 100000) });
$("panic").onclick = () => command({ panic: $("panic").getAttribute("aria-pressed") !== "true", ...(state.panic_mode === "camera" ? { consent: true } : {}) });
$("bypass").onclick = async () => {
  if (state.show === "camera") return command({ bypass: false });
  if (await consent(CAMERA_WARNING)) command({ bypass: true, consent: true });
};
$("panic-mode").onchange = async (event) => {
  const mode = event.target.value;
  if (mode !== "camera") return change({ panic_mode: mode });
  if (await consent(`Panic would then show your real camera. ${CAMERA_WARNING}`)) return command({ panic_mode: mode, consent: true });
  show(state);
};

function consent(text) {
  const box = $("consent");
  box.querySelector("p").textContent = text;
  box.showModal();
  $("no").focus();
  return new Promise((decide) => {
    $("yes").onclick = () => { decide(true); box.close(); };
    $("no").onclick = () => box.close();
    box.onclose = () => decide(false);
  });
}

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 6000);
}

addEventListener("resize", plot);
addEventListener("hashchange", () => { gate(); socket?.close(); connect(); });
showTags();
setInterval(poll, PREVIEW_EVERY_MS);
connect();
