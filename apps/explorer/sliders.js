// A board of the browser's own sliders. `data` is that of `Board.show` in sliders.py; `parentElement` lives as long as the board.

const PATIENCE_MS = 1500; // an answer that takes longer may be cut off by the next move
const REST_MS = 250; // without a move, after which the reader is taken to look at the answer
const boards = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  if (!boards.has(parentElement)) boards.set(parentElement, new Board(parentElement.querySelector(".board"), data.answered));
  boards.get(parentElement).answer(data, setTriggerValue);
}

class Board {
  constructor(root, answered) {
    this.root = root;
    this.number = answered; // of the message sent last
    this.stirred = false; // since the last rest
    this.waiting = {}; // places that were not sent yet, by name
    this.rows = new Map();
  }

  /** The page has run: it may have answered the last message, and its places count unless another move is under way. */
  answer(data, send) {
    this.data = data;
    this.send = send;
    this.root.style.setProperty("--columns", data.columns);
    this.match(data.sliders);
    if (data.answered < this.number) return;
    this.free();
    if (this.busy) return;
    data.sliders.forEach(([name], slider) => this.put(name, data.places[slider]));
    this.keepAddress(data.sliders.map(([name]) => name));
    if (this.stirred && data.rests) this.rest = setTimeout(() => this.settle(), REST_MS);
  }

  /** As many rows as there are sliders, in their order. */
  match(sliders) {
    const names = new Set(sliders.map(([name]) => name));
    const gone = [...this.rows.keys()].filter((name) => !names.has(name));
    for (const name of gone) {
      this.rows.get(name).label.remove();
      this.rows.delete(name);
      delete this.waiting[name];
    }
    if (gone.length) this.keepAddress(gone);
    for (const [name, text] of sliders) {
      if (!this.rows.has(name)) this.rows.set(name, this.row(name));
      const { label, title, input } = this.rows.get(name);
      title.textContent = text;
      input.setAttribute("aria-label", text);
      label.title = this.data.hint;
      input.max = this.data.stops.length - 1;
    }
  }

  row(name) {
    const [label, title, value, input] = ["label", "span", "output", "input"].map((tag) => document.createElement(tag));
    Object.assign(input, { type: "range", min: 0, step: 1, name });
    input.addEventListener("input", () => this.moved(name, Number(input.value)));
    label.append(title, value, input);
    this.root.append(label);
    return { label, title, value, input };
  }

  put(name, place) {
    const { input, value } = this.rows.get(name);
    const { stops, unit } = this.data;
    const text = `${stops[place].replace("-", "−")}${unit && ` ${unit}`}`;
    input.value = place;
    input.setAttribute("aria-valuetext", text);
    value.textContent = text;
    const origin = Math.max(stops.indexOf("0"), 0); // filled from zero, or from the left end where there is none
    const [from, to] = [origin, place].map((one) => one / (stops.length - 1)).sort((a, b) => a - b);
    input.style.setProperty("--from", from);
    input.style.setProperty("--to", to);
  }

  moved(name, place) {
    clearTimeout(this.rest);
    this.stirred = true;
    this.put(name, place);
    this.waiting[name] = place;
    this.keepAddress([name]);
    if (!this.busy) this.flush();
  }

  /** Send what waits, if anything does. */
  flush() {
    if (!Object.keys(this.waiting).length) return;
    const places = this.waiting;
    this.waiting = {};
    this.number += 1;
    this.busy = setTimeout(() => this.free(), PATIENCE_MS);
    this.send("moved", { number: this.number, places });
  }

  /** Ask for what is drawn only where the sliders come to rest. */
  settle() {
    this.stirred = false;
    this.send("rested", this.number);
  }

  free() {
    clearTimeout(this.busy);
    this.busy = undefined;
    this.flush();
  }

  keepAddress(names) {
    const address = new URL(window.location.href);
    for (const name of names) {
      const row = this.rows.get(name);
      if (!row || Number(row.input.value) === this.data.default) address.searchParams.delete(name);
      else address.searchParams.set(name, this.data.stops[Number(row.input.value)]);
    }
    if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
  }
}
