// Medians, and ratios of what was measured in the same round: the machine is noisy from minute to
// minute, so only figures of one round are compared.

export function median(values) {
  if (values.length === 0) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export const summary = (values) => ({
  median: median(values),
  min: Math.min(...values),
  max: Math.max(...values),
});

/** Ours divided by theirs, round by round; a round that lacks either is left out. */
export function ratios(ours, theirs) {
  const pairs = ours.map((value, round) => value / theirs[round]);
  return pairs.filter((ratio) => Number.isFinite(ratio));
}

/** Whether a ratio reaches a bar; `better` says where better is. */
export function reaches(ratio, bar, better) {
  return better === "more" ? ratio >= bar : ratio <= bar;
}
