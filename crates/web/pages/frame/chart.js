// Batch reports as series, and series as small lines.

const POINTS = 120;
/** The least time that a point covers, in microseconds: fast batches are drawn together. */
const GRAIN = 500_000;
/** The time over which the present rate is taken, in microseconds. */
const PRESENT = 3e6;

/** What is kept of the batches: points of {took, records, rate, processing, delay, queued, behind, state, letters}. */
export class History {
  constructor() {
    this.clear();
  }

  clear() {
    this.points = [];
    this.last = null;
    this.open = null;
  }

  /** Takes a report, unless it is known. */
  add(report) {
    if (this.last && report.batch <= this.last.batch) return;
    const before = this.last;
    this.last = report;
    // The first report has no batch before it, so no time in which its records came.
    if (!before) return;
    this.open ??= { from: before.time, records: 0, processing: 0, delay: 0, queued: 0, letters: 0 };
    const open = this.open;
    open.records += report.records_in;
    open.processing = Math.max(open.processing, report.processing_us);
    open.delay = Math.max(open.delay, report.scheduling_delay_us);
    open.queued = Math.max(open.queued, report.queued);
    open.letters += Object.values(report.letters).reduce((sum, n) => sum + n, 0);
    open.state = report.state_bytes;
    open.behind = behind(report);
    open.took = report.time - open.from;
    if (open.took < GRAIN) return;
    open.rate = (open.records * 1e6) / open.took;
    this.points.push(open);
    if (this.points.length > POINTS) this.points.shift();
    this.open = null;
  }

  /** Records a second over the last few seconds; null before the second batch. */
  rate() {
    let [records, took] = [0, 0];
    for (let i = this.points.length - 1; i >= 0 && took < PRESENT; i--) {
      records += this.points[i].records;
      took += this.points[i].took;
    }
    return took ? (records * 1e6) / took : null;
  }

  /** The time between two points, in microseconds. */
  pace() {
    return this.points.at(-1)?.took ?? 0;
  }
}

/** How far the watermark is behind the batch, in microseconds; null where there is none. */
export const behind = ({ watermark, time }) => (watermark === null || watermark > time + 1e12 ? null : Math.max(0, time - watermark));

const SVG = 'http://www.w3.org/2000/svg';

/** A line over an area, scaled from zero to its largest value. */
export class Spark {
  constructor(label) {
    this.svg = document.createElementNS(SVG, 'svg');
    this.svg.setAttribute('class', 'spark');
    this.svg.setAttribute('viewBox', `0 0 ${POINTS - 1} 46`);
    this.svg.setAttribute('preserveAspectRatio', 'none');
    this.svg.setAttribute('role', 'img');
    this.svg.setAttribute('aria-label', label);
    [this.area, this.stroke] = ['area', 'stroke'].map((name) => {
      const path = document.createElementNS(SVG, 'path');
      path.setAttribute('class', name);
      return this.svg.appendChild(path);
    });
  }

  /** Draws the values, the newest at the right; returns the largest. */
  draw(values) {
    values = values.map((value) => value ?? 0);
    const largest = Math.max(...values, 0);
    const left = POINTS - values.length;
    const line = values
      .map((value, i) => `${left + i},${(44 - (largest ? value / largest : 0) * 40).toFixed(1)}`)
      .join('L');
    this.stroke.setAttribute('d', values.length > 1 ? `M${line}` : '');
    this.area.setAttribute('d', values.length > 1 ? `M${left},46L${line}L${POINTS - 1},46Z` : '');
    return largest;
  }
}
