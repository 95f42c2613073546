// Plays trajectories on canvases: sticks coloured by element for small molecules, a smooth trace of CA for large ones.
// All canvases share one camera and one clock. Data: see evaluation/report/viewer.py.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const COLOURS = { C: [92, 104, 120], N: [48, 92, 214], O: [214, 60, 54], S: [214, 160, 20] };
  const OTHER = [150, 80, 170];
  const camera = { rotation: [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom: 1 };
  const clock = { place: 0, playing: false, last: 0 }; // place: 0 to 1 along every trajectory

  function decode(text, unit) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true) * unit);
  }

  function turn(axis, angle, m) { // rotation about x (0) or y (1) of the screen, after m
    const c = Math.cos(angle), s = Math.sin(angle);
    const r = axis === 0 ? [1, 0, 0, 0, c, -s, 0, s, c] : [c, 0, s, 0, 1, 0, -s, 0, c];
    const out = [];
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < 3; j++) out.push(r[3 * i] * m[j] + r[3 * i + 1] * m[3 + j] + r[3 * i + 2] * m[6 + j]);
    return out;
  }

  function rainbow(t) { // from blue at the N terminus to red at the C terminus
    const stops = [[40, 90, 200], [30, 150, 160], [90, 160, 60], [225, 150, 30], [205, 50, 45]];
    const x = Math.min(0.9999, t) * (stops.length - 1), i = Math.floor(x), f = x - i;
    return stops[i].map((v, k) => v + (stops[i + 1][k] - v) * f);
  }

  function spline(p, i, f) { // Catmull-Rom curve through points of 3 numbers, between i and i + 1
    const at = (k) => p[Math.max(0, Math.min(p.length - 1, k))];
    const [a, b, c, d] = [at(i - 1), at(i), at(i + 1), at(i + 2)];
    return [0, 1, 2].map((k) => 0.5 * (2 * b[k] + (c[k] - a[k]) * f + (2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]) * f * f
      + (3 * b[k] - a[k] - 3 * c[k] + d[k]) * f * f * f));
  }

  class View {
    constructor(figure, side) {
      this.canvas = figure.querySelector("canvas");
      this.label = figure.querySelector("output");
      this.side = side;
      this.positions = decode(side.positions, data.unit);
      this.atoms = data.elements.length;
      this.frames = this.positions.length / (3 * this.atoms);
      this.canvas.dataset.frames = this.frames;
    }

    get frame() { return Math.min(this.frames - 1, Math.floor(clock.place * this.frames)); }

    projected(frame, width, height) { // pixels, depth (nm) and scale (pixels a nm) of every atom
      const m = camera.rotation, far = 4 * data.radius, points = [];
      const fit = (0.52 * Math.min(width, height) * camera.zoom) / data.radius;
      for (let a = 0, i = 3 * frame * this.atoms; a < this.atoms; a++, i += 3) {
        const [x, y, z] = this.positions.subarray(i, i + 3);
        const depth = m[6] * x + m[7] * y + m[8] * z;
        const scale = (fit * far) / Math.max(0.2 * far, far - depth);
        points.push([width / 2 + scale * (m[0] * x + m[1] * y + m[2] * z),
          height / 2 - scale * (m[3] * x + m[4] * y + m[5] * z), depth, scale]);
      }
      return points;
    }

    sticks(points) { // halves of bonds, each in the colour of its atom
      const parts = [], bonded = new Set();
      for (const [a, b] of data.bonds) {
        const p = points[a], q = points[b], mid = p.map((v, k) => (v + q[k]) / 2);
        parts.push([p, mid, this.colour(a), 0.04], [q, mid, this.colour(b), 0.04]);
        bonded.add(a).add(b);
      }
      points.forEach((p, a) => { if (!bonded.has(a)) parts.push([p, p, this.colour(a), 0.06]); });
      return [parts, points];
    }

    colour(atom) { return COLOURS[data.elements[atom]] || OTHER; }

    trace(points) { // a smooth line through the CA of each chain
      const parts = [], used = [], steps = 5;
      for (const chain of data.chains) {
        const p = chain.map((a) => points[a]);
        used.push(...p);
        for (let i = 0; i + 1 < p.length; i++)
          for (let k = 0; k < steps; k++) {
            const [u, v] = [spline(p, i, k / steps), spline(p, i, (k + 1) / steps)];
            parts.push([[...u, p[i][3]], [...v, p[i][3]], rainbow((i + k / steps) / p.length), 0.11]);
          }
      }
      return [parts, used];
    }

    draw() {
      const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
      const width = box.width, height = box.height, context = this.canvas.getContext("2d");
      if (!width) return;
      if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
        this.canvas.width = Math.round(width * ratio);
        this.canvas.height = Math.round(height * ratio);
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      const points = this.projected(this.frame, width, height);
      const [parts, atoms] = data.mode === "sticks" ? this.sticks(points) : this.trace(points);
      parts.sort((p, q) => p[0][2] + p[1][2] - q[0][2] - q[1][2]);
      for (const [p, q, colour, thickness] of parts) {
        const near = Math.max(0, Math.min(1, 0.5 + (p[2] + q[2]) / (4 * data.radius)));
        const shade = (dark) => `rgb(${colour.map((v) => Math.round(dark * (v + (250 - v) * 0.45 * (1 - near)))).join()})`;
        const size = Math.max(1.2, thickness * (p[3] + q[3]) / 2);
        for (const [style, wide, cap] of [[shade(0.72), size + 1.6, "butt"], [shade(1), size, "round"]]) {
          context.strokeStyle = style;
          context.lineCap = cap;
          context.lineWidth = wide;
          context.beginPath();
          context.moveTo(p[0], p[1]);
          context.lineTo(q[0] + 1e-3, q[1]);
          context.stroke();
        }
      }
      this.canvas.dataset.atoms = atoms.filter((p) => p[0] >= 0 && p[0] <= width && p[1] >= 0 && p[1] <= height).length;
      this.canvas.dataset.frame = this.frame;
      const broken = this.side.broken[this.frame] ? " · broken" : "";
      this.label.textContent = `${this.side.times[this.frame]} ns${broken}`;
      this.label.classList.toggle("broken", Boolean(broken));
    }
  }

  const views = data.sides.map((side, i) => new View(document.getElementById(`view-${i}`), side));
  const draw = () => views.forEach((view) => view.draw());
  const slider = document.getElementById("viewer-slider"), button = document.getElementById("viewer-play");
  const speed = document.getElementById("viewer-speed"), most = Math.max(...views.map((view) => view.frames));
  slider.max = most - 1;

  function play(on) {
    clock.playing = on;
    button.textContent = on ? "Pause" : "Play";
    if (on) requestAnimationFrame((now) => { clock.last = now; requestAnimationFrame(tick); });
  }

  function tick(now) {
    if (!clock.playing) return;
    clock.place = (clock.place + ((now - clock.last) / 1000) * (Number(speed.value) / most)) % 1;
    clock.last = now;
    slider.value = Math.floor(clock.place * most);
    draw();
    requestAnimationFrame(tick);
  }

  button.addEventListener("click", () => play(!clock.playing));
  slider.addEventListener("input", () => { clock.place = (Number(slider.value) + 0.5) / most; draw(); });

  function zoom(factor) { camera.zoom = Math.max(0.3, Math.min(12, camera.zoom * factor)); draw(); }

  function rotate(dx, dy) {
    camera.rotation = turn(0, dy * 0.01, turn(1, dx * 0.01, camera.rotation));
    draw();
  }

  for (const { canvas } of views) {
    const fingers = new Map(); // pointers that are down
    const gap = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const old = fingers.get(event.pointerId);
      if (!old) return;
      const before = fingers.size === 2 ? gap() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (before) zoom(gap() / before);
      else rotate(event.clientX - old[0], event.clientY - old[1]);
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return; // the page scrolls until the picture has been clicked
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { camera.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1]; camera.zoom = 1; draw(); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-15, 0], ArrowRight: [15, 0], ArrowUp: [0, -15], ArrowDown: [0, 15] }[event.key];
      if (step) rotate(...step);
      else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.15 : 1 / 1.15);
      else if (event.key === " ") play(!clock.playing);
      else return;
      event.preventDefault();
    });
  }
  new ResizeObserver(draw).observe(document.getElementById("viewer"));
  window.addEventListener("beforeprint", draw);
  draw();
})();
