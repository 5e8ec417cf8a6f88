// Which forms suit the rows of a view, and what of the rows a form shows.

/** All forms, in the order in which they are offered. */
export const FORMS = ['bars', 'lines', 'table', 'number', 'heat', 'map', 'cloud'];

const LATITUDE = /^(lat|latitude|.*_lat|纬度)$/i;
const LONGITUDE = /^(lon|lng|long|longitude|.*_lon|.*_lng|经度)$/i;

/** The columns of a view by what they are good for, as places. */
export function parts({ columns, rows }) {
  const of = (...types) => columns.flatMap((column, i) => (types.includes(column.type) ? [i] : []));
  const named = (pattern) => columns.findIndex((column) => column.type === 'number' && pattern.test(column.name));
  const [latitude, longitude] = [named(LATITUDE), named(LONGITUDE)];
  const place = latitude >= 0 && longitude >= 0;
  const numbers = of('number').filter((i) => !place || (i !== latitude && i !== longitude));
  const varies = (i) => rows.some((row) => row[i] !== rows[0][i]);
  return {
    texts: of('text', 'bool'),
    numbers,
    times: of('time'),
    // Times that are the same in all rows, as the bounds of a window are, say when and not what.
    moving: of('time').filter(varies),
    place: place ? { latitude, longitude } : null,
  };
}

/** The form that shows rows best, as far as their columns tell. */
export function sensible(view) {
  const { texts, numbers, moving, place } = parts(view);
  if (place) return 'map';
  if (!numbers.length) return 'table';
  if (moving.length) return texts.length <= 1 ? 'lines' : 'table';
  if (texts.length === 0) return view.rows.length <= 1 ? 'number' : 'table';
  if (texts.length === 1) return numbers.length === 1 ? 'bars' : 'table';
  if (texts.length === 2 && numbers.length === 1) return 'heat';
  return 'table';
}

/** What a form lacks in a view, as a key of the strings; `null` when nothing. */
export function lacks(form, view) {
  const { texts, numbers, moving, place } = parts(view);
  switch (form) {
    case 'bars':
    case 'cloud':
      return texts.length && numbers.length ? null : 'needs_text';
    case 'lines':
    case 'number':
      return numbers.length ? null : 'needs_number';
    case 'heat':
      return numbers.length && texts.length + moving.length >= 1 ? null : 'needs_two';
    case 'map':
      return place ? null : 'needs_place';
    default:
      return null;
  }
}

/** A number of a view, which is a string where JavaScript would round it. */
export const numeric = (value) => (value === null ? null : Number(value));

/** A time of a view, which is ISO 8601, in milliseconds. */
export const moment = (value) => (value === null ? null : Date.parse(/[zZ]|[+-]\d\d:\d\d$/.test(value) ? value : `${value}Z`));

/** Texts and numbers of a view's rows: {text, value}; texts that come twice are kept apart by the caller. */
export function pairs(view, { text, number }) {
  return view.rows.map((row) => ({ text: row[text], value: row[number] }));
}

/** Lines over time: {name, points: [ms, value][]}[], the `most` largest at the end. */
export function lines(steps, { text, number, time }, most = 8) {
  const found = new Map();
  const add = (name, at, value) => {
    if (!found.has(name)) found.set(name, []);
    found.get(name).push([at, value]);
  };
  const newest = steps.at(-1)?.view;
  if (!newest) return [];
  const over = time === null || time === undefined ? steps : steps.slice(-1);
  for (const { view } of over) {
    for (const row of view.rows) {
      const at = over === steps ? view.time / 1000 : moment(row[time]);
      const name = text === null || text === undefined ? view.columns[number].name : String(row[text]);
      if (at !== null) add(name, at, numeric(row[number]));
    }
  }
  for (const points of found.values()) points.sort((a, b) => a[0] - b[0]);
  const last = (points) => points.at(-1)[1] ?? 0;
  const end = Math.max(...[...found.values()].map((points) => points.at(-1)[0]));
  const standing = ([, points]) => (points.at(-1)[0] === end ? 1 : 0);
  return [...found]
    .sort((a, b) => standing(b) - standing(a) || last(b[1]) - last(a[1]))
    .slice(0, most)
    .map(([name, points]) => ({ name, points }));
}

/** Cells of a heat map: {xs, ys, cells: [x, y, value][]}; of one text, across the batches. */
export function cells(steps, { text, second, number, time }, most = 60) {
  const newest = steps.at(-1)?.view;
  if (!newest) return { xs: [], ys: [], cells: [] };
  const across = second ?? time;
  const given = [];
  if (across !== null && across !== undefined) {
    for (const row of newest.rows) given.push([String(row[across]), String(row[text ?? across]), numeric(row[number])]);
  } else {
    const leading = new Set(newest.rows.slice(0, most).map((row) => String(row[text])));
    for (const { view } of steps.slice(-most)) {
      const at = new Date(view.time / 1000).toLocaleTimeString([], { hour12: false });
      for (const row of view.rows) if (leading.has(String(row[text]))) given.push([at, String(row[text]), numeric(row[number])]);
    }
  }
  const names = (at) => [...new Set(given.map((cell) => cell[at]))].slice(at === 0 ? -most : 0).slice(0, most);
  const [xs, ys] = [names(0), names(1)];
  const [x, y] = [new Map(xs.map((name, i) => [name, i])), new Map(ys.map((name, i) => [name, i]))];
  const shown = given.filter((cell) => x.has(cell[0]) && y.has(cell[1])).map(([a, b, value]) => [x.get(a), y.get(b), value]);
  return { xs, ys, cells: shown };
}
