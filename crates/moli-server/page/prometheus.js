// Reading metrics in the text format of Prometheus and OpenMetrics.

/** The samples of a text: [{ name, labels: { … }, value }]. Lines that are none are passed over. */
export function parse(text) {
  const samples = [];
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (\S+)/.exec(line);
    if (match) samples.push({ name: match[1], labels: labelsOf(match[2] ?? ''), value: numberOf(match[3]) });
  }
  return samples;
}

function labelsOf(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, char) => (char === 'n' ? '\n' : char));
  }
  return labels;
}

const numberOf = (text) => (text === '+Inf' ? Infinity : text === '-Inf' ? -Infinity : Number(text));

/** The sum over the samples of this name that `keep` keeps, or NaN if there are none. */
export function sum(samples, name, keep = () => true) {
  const kept = samples.filter((sample) => sample.name === name && keep(sample));
  return kept.length === 0 ? NaN : kept.reduce((total, { value }) => total + value, 0);
}

/** A histogram as a map from each bucket's upper bound to the observations up to it. */
export function buckets(samples, name, keep) {
  const counts = new Map();
  for (const sample of samples) {
    if (sample.name !== `${name}_bucket` || !keep(sample)) continue;
    const bound = numberOf(sample.labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + sample.value);
  }
  return counts;
}

/** How far a counter came from one sample to the next; one that fell has begun anew. */
export const increase = (before, after) => (after >= before ? after - before : after);

/**
 * The quantile `q` of what was observed between two readings of a histogram, taking observations as even within a bucket;
 * NaN if there were none.
 */
export function quantile(q, before, after) {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const restarted = bounds.some((bound) => after.get(bound) < (before.get(bound) ?? 0));
  const counts = bounds.map((bound) => after.get(bound) - (restarted ? 0 : (before.get(bound) ?? 0)));
  const all = counts[counts.length - 1];
  if (!(all > 0)) return NaN;
  const rank = q * all;
  const at = counts.findIndex((count) => count >= rank);
  const low = at === 0 ? 0 : bounds[at - 1];
  // Nothing is known of the last bucket but where it begins.
  if (bounds[at] === Infinity) return low;
  const below = at === 0 ? 0 : counts[at - 1];
  return low + ((bounds[at] - low) * (rank - below)) / (counts[at] - below || 1);
}
