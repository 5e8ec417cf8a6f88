// The chart library, loaded when a form needs it, behind the page's policy.

import { options } from './options.js';

let library = null;
let coasts = null;

/** The library; one request, whoever asks. */
export function echarts() {
  library ??= import('../vendor/echarts.js').catch((error) => {
    library = null;
    throw error;
  });
  return library;
}

/** Coast lines as [longitude, latitude][][]; none when they can't be had. */
async function land() {
  coasts ??= fetch('/assets/vendor/land.json')
    .then((answer) => (answer.ok ? answer.json() : []))
    .catch(() => []);
  return coasts;
}

/**
 * A box for the library. It empties its box by `innerHTML = ''`, which the policy
 * refuses for any string: of this box that empties it, and does nothing else.
 */
function box() {
  const made = document.createElement('div');
  Object.defineProperty(made, 'innerHTML', { set: () => made.replaceChildren() });
  return made;
}

/** A chart of the library on the screen. */
export class Plot {
  constructor() {
    this.element = box();
    this.element.className = 'plot';
    this.element.setAttribute('role', 'img');
    this.chart = null;
    this.size = new ResizeObserver(() => {
      this.chart?.resize();
      this.again?.();
    });
    this.size.observe(this.element);
  }

  async draw(form, steps, picked, colours) {
    const { init } = await echarts();
    const coast = form === 'map' ? await land() : null;
    if (!this.element.isConnected) return;
    this.chart ??= init(this.element);
    const show = () => {
      const { clientWidth: wide, clientHeight: high } = this.element;
      if (wide && high) this.chart.setOption(options(form, steps, picked, colours, { wide, high, land: coast }), { notMerge: true });
    };
    this.again = show;
    show();
  }

  close() {
    this.size.disconnect();
    this.chart?.dispose();
    this.chart = null;
  }
}

/** A form as a file: `png` or `svg`. */
export async function file(kind, form, steps, picked, colours, wide = 1200, high = 700) {
  const { init } = await echarts();
  const given = options(form, steps, picked, colours, { wide, high, land: form === 'map' ? await land() : null });
  given.backgroundColor = colours.card;
  if (kind === 'svg') {
    const chart = init(null, null, { renderer: 'svg', ssr: true, width: wide, height: high });
    chart.setOption(given);
    const text = chart.renderToSVGString();
    chart.dispose();
    return new Blob([text], { type: 'image/svg+xml' });
  }
  const chart = init(box(), null, { renderer: 'canvas', width: wide, height: high, devicePixelRatio: 2 });
  chart.setOption(given);
  const address = chart.getDataURL({ type: 'png', pixelRatio: 2, backgroundColor: colours.card });
  chart.dispose();
  // Not by `fetch`: the policy lets the page ask its own server only.
  const bytes = Uint8Array.from(atob(address.split(',')[1]), (c) => c.codePointAt(0));
  return new Blob([bytes], { type: 'image/png' });
}
