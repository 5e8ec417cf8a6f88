// Where the nodes of a graph stand: in columns, each right of all that it reads.

/** Places of nodes by id, as {column, row}, with as few crossings as a few sweeps find. */
export function layout(nodes) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const columns = new Map();
  const column = (node, under = new Set()) => {
    if (columns.has(node.id)) return columns.get(node.id);
    // A graph never has a circle; should one come, it is cut and not followed for ever.
    if (under.has(node.id)) return 0;
    under.add(node.id);
    const inputs = node.inputs.map((id) => byId.get(id)).filter(Boolean);
    const at = inputs.length ? 1 + Math.max(...inputs.map((input) => column(input, under))) : 0;
    columns.set(node.id, at);
    return at;
  };
  nodes.forEach((node) => column(node));
  const last = Math.max(0, ...columns.values());
  // Outputs stand at the right edge, where one looks for them.
  for (const node of nodes) if (node.kind === 'output') columns.set(node.id, last);
  const lists = Array.from({ length: last + 1 }, (_, at) => nodes.filter((node) => columns.get(node.id) === at));
  const rows = new Map();
  const number = () => lists.forEach((list) => list.forEach((node, row) => rows.set(node.id, row - (list.length - 1) / 2)));
  number();
  const readers = new Map(nodes.map((node) => [node.id, nodes.filter((other) => other.inputs.includes(node.id)).map((other) => other.id)]));
  const middle = (ids, node) => {
    const at = ids.map((id) => rows.get(id)).filter((row) => row !== undefined);
    return at.length ? at.reduce((sum, row) => sum + row, 0) / at.length : rows.get(node.id);
  };
  for (let sweep = 0; sweep < 4; sweep++) {
    for (const list of sweep % 2 ? [...lists].reverse() : lists) {
      const by = new Map(list.map((node) => [node.id, middle(sweep % 2 ? readers.get(node.id) : node.inputs, node)]));
      list.sort((a, b) => by.get(a.id) - by.get(b.id));
      number();
    }
  }
  return new Map(nodes.map((node) => [node.id, { column: columns.get(node.id), row: rows.get(node.id) }]));
}
