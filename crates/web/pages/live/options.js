// Each form as options of the chart library: for the screen, and for files.
//
// Text of the stream only ever stands where the library draws it as it is: in
// names and data, never in a template, and never as HTML.

import { number } from '../frame/dom.js';
import { cloud } from './cloud.js';
import { cells, lines, numeric, pairs } from './forms.js';

/** Colours that differ for all eyes (Okabe and Ito). */
export const SERIES = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#8f7a00', '#7a7a7a'];
/** From few to many, in steps of lightness that all eyes see (after viridis). */
const HEAT = ['#440154', '#414487', '#2a788e', '#22a884', '#7ad151', '#fde725'];
/** Bars of a chart at most. */
const BARS = 40;

/** A text in a tip, where `{name|` would begin a style. */
const plain = (text) => String(text).replaceAll('{', '{\u2060');
const shortened = (text, most = 28) => ([...String(text)].length > most ? `${[...String(text)].slice(0, most - 1).join('')}…` : String(text));

function common(colours) {
  return {
    animation: false,
    color: SERIES,
    backgroundColor: 'transparent',
    textStyle: { color: colours.ink, fontFamily: 'system-ui, sans-serif' },
    tooltip: {
      renderMode: 'richText',
      confine: true,
      backgroundColor: colours.card,
      borderColor: colours.line,
      textStyle: { color: colours.ink },
    },
  };
}

function axis(colours, more) {
  return {
    axisLine: { lineStyle: { color: colours.line } },
    axisLabel: { color: colours.quiet, hideOverlap: true },
    splitLine: { lineStyle: { color: colours.line } },
    nameTextStyle: { color: colours.quiet },
    ...more,
  };
}

/** The options of `form` over the last of `steps`, with the columns that were `picked`. */
export function options(form, steps, picked, colours, { wide, high, land }) {
  const view = steps.at(-1).view;
  switch (form) {
    case 'bars': {
      const items = pairs(view, picked).slice(0, BARS).reverse();
      return {
        ...common(colours),
        grid: { left: 12, right: 60, top: 12, bottom: 12, containLabel: true },
        xAxis: axis(colours, { type: 'value' }),
        yAxis: axis(colours, { type: 'category', data: items.map((item) => shortened(item.text)), axisLabel: { color: colours.ink } }),
        series: [
          {
            type: 'bar',
            data: items.map((item) => numeric(item.value)),
            label: { show: true, position: 'right', color: colours.ink, formatter: ({ value }) => number(value) },
          },
        ],
      };
    }
    case 'lines': {
      const series = lines(steps, picked);
      return {
        ...common(colours),
        grid: { left: 12, right: 24, top: series.length > 1 ? 48 : 20, bottom: 12, containLabel: true },
        legend: { show: series.length > 1, type: 'scroll', textStyle: { color: colours.ink }, data: series.map((line) => line.name), formatter: (name) => shortened(name) },
        tooltip: {
          ...common(colours).tooltip,
          trigger: 'axis',
          formatter: (points) =>
            points.map((point) => `${plain(shortened(point.seriesName))}: ${number(point.value[1])}`).join('\n'),
        },
        xAxis: axis(colours, { type: 'time', splitLine: { show: false } }),
        yAxis: axis(colours, { type: 'value', scale: false }),
        series: series.map((line) => ({
          type: 'line',
          name: line.name,
          data: line.points,
          showSymbol: line.points.length < 3,
          lineStyle: { width: 2 },
        })),
      };
    }
    case 'heat': {
      const { xs, ys, cells: shown } = cells(steps, picked);
      const values = shown.map((cell) => cell[2] ?? 0);
      return {
        ...common(colours),
        grid: { left: 12, right: 12, top: 12, bottom: 56, containLabel: true },
        tooltip: {
          ...common(colours).tooltip,
          formatter: ({ value }) => `${plain(shortened(xs[value[0]]))} · ${plain(shortened(ys[value[1]]))}: ${number(value[2])}`,
        },
        xAxis: axis(colours, { type: 'category', data: xs.map((name) => shortened(name, 20)), splitLine: { show: false } }),
        yAxis: axis(colours, { type: 'category', data: ys.map((name) => shortened(name)), splitLine: { show: false }, inverse: true }),
        visualMap: {
          min: Math.min(0, ...values),
          max: Math.max(1, ...values),
          calculable: true,
          orient: 'horizontal',
          left: 'center',
          bottom: 4,
          inRange: { color: HEAT },
          textStyle: { color: colours.quiet },
        },
        series: [{ type: 'heatmap', data: shown, progressive: 0 }],
      };
    }
    case 'map': {
      const { place, number: size, text } = picked;
      const largest = Math.max(...view.rows.map((row) => numeric(row[size]) ?? 0), 1);
      const points = view.rows
        .filter((row) => row[place.longitude] !== null && row[place.latitude] !== null)
        .map((row) => ({
          value: [numeric(row[place.longitude]), numeric(row[place.latitude]), size === null ? 1 : numeric(row[size])],
          name: text === null ? '' : String(row[text]),
        }));
      // A degree is as long across as it is up.
      const across = Math.min(wide - 16, 2 * (high - 16));
      return {
        ...common(colours),
        grid: { left: (wide - across) / 2, top: (high - across / 2) / 2, width: across, height: across / 2 },
        tooltip: {
          ...common(colours).tooltip,
          formatter: ({ data }) => (data.value ? `${plain(shortened(data.name))} ${size === null ? '' : number(data.value[2])}` : ''),
        },
        xAxis: axis(colours, { type: 'value', min: -180, max: 180, interval: 30, axisLabel: { show: false } }),
        yAxis: axis(colours, { type: 'value', min: -90, max: 90, interval: 30, axisLabel: { show: false } }),
        series: [
          {
            type: 'lines',
            coordinateSystem: 'cartesian2d',
            polyline: true,
            silent: true,
            data: (land ?? []).map((coords) => ({ coords })),
            lineStyle: { color: colours.quiet, width: 1, opacity: 0.7 },
          },
          {
            type: 'scatter',
            data: points,
            symbolSize: (value) => (size === null ? 7 : 5 + 25 * Math.sqrt(Math.max(0, value[2]) / largest)),
            itemStyle: { color: SERIES[5], opacity: 0.75 },
          },
        ],
      };
    }
    case 'cloud':
      return {
        ...common(colours),
        graphic: cloud(pairs(view, picked), wide, high).map((word, i) => ({
          type: 'text',
          silent: true,
          x: word.x,
          y: word.y,
          style: {
            text: word.text,
            font: `600 ${word.size.toFixed(1)}px system-ui, sans-serif`,
            fill: SERIES[i % SERIES.length],
            align: 'center',
            verticalAlign: 'middle',
          },
        })),
      };
    case 'number': {
      const value = view.rows[0]?.[picked.number];
      const line = (text, y, size, fill) => ({
        type: 'text',
        silent: true,
        x: wide / 2,
        y,
        style: { text, font: `600 ${size}px system-ui, sans-serif`, fill, align: 'center', verticalAlign: 'middle' },
      });
      return {
        ...common(colours),
        graphic: [
          line(value === undefined || value === null ? '–' : number(value), high / 2, Math.min(high / 3, wide / 8), colours.tide),
          line(shortened(view.columns[picked.number].name), high / 2 + Math.min(high / 3, wide / 8) * 0.8, 18, colours.quiet),
        ],
      };
    }
    default:
      return null;
  }
}
