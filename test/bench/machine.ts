import { cpus } from "node:os";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

setFlagsFromString("--expose-gc");
/** Before something is measured: what was made for it is not to be collected meanwhile. */
export const collectGarbage = runInNewContext("gc") as () => void;

/** CPU time that all processes of this machine have used, ms. */
const busyMs = (): number =>
  cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0);

/** What others do on the machine while something is measured: on a busy one no wall time means much, and ratios less. */
export const watchOthers = () => {
  const startMs = performance.now();
  const before = busyMs();
  return (oursMs: number): string => {
    const cores = cpus().length;
    const others = Math.max(0, busyMs() - before - oursMs) / (performance.now() - startMs);
    return `others took ${others.toFixed(1)} of the ${cores} cores meanwhile`;
  };
};
