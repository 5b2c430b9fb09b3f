/** A binary heap: the smallest by `compare` comes out first. */
export interface Heap<T> {
  readonly size: number;
  push(item: T): void;
  peek(): T | undefined;
  pop(): T | undefined;
}

export const openHeap = <T>(compare: (a: T, b: T) => number): Heap<T> => {
  const items: T[] = [];
  const before = (a: number, b: number) => compare(items[a] as T, items[b] as T) < 0;
  const swap = (a: number, b: number) => {
    [items[a], items[b]] = [items[b] as T, items[a] as T];
  };
  return {
    get size() {
      return items.length;
    },
    push(item) {
      let at = items.push(item) - 1;
      while (at > 0) {
        const parent = (at - 1) >> 1;
        if (!before(at, parent)) return;
        swap(at, parent);
        at = parent;
      }
    },
    peek: () => items[0],
    pop() {
      const [first] = items;
      const last = items.pop();
      if (items.length === 0) return first;
      items[0] = last as T;
      for (let at = 0; ; ) {
        const left = 2 * at + 1;
        let least = at;
        if (left < items.length && before(left, least)) least = left;
        if (left + 1 < items.length && before(left + 1, least)) least = left + 1;
        if (least === at) return first;
        swap(at, least);
        at = least;
      }
    },
  };
};
