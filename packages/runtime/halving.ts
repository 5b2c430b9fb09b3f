/** The least number from `low` to `high` of which `holds`, by halving: where it holds of one, it holds of all after it. `high` is not asked. */
export const leastOf = async (low: number, high: number, holds: (n: number) => Promise<boolean>): Promise<number> => {
  let [from, to] = [low, high];
  while (from < to) {
    const middle = Math.floor((from + to) / 2);
    if (await holds(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
};
