import { shown } from "./scan-files.ts";
import { originsOf, scanObjects } from "./scan-git.ts";
import type { ScanOptions, Sighting } from "./scan-sources.ts";

/** Past this, what else there is of a secret says nothing new. */
const maxPlacesPerSecret = 100;
const maxObjectsWithSecrets = 200_000;

interface Place {
  readonly commit: string;
  readonly committedMs: number;
  readonly line: number;
}

/** Our secrets by object, each with its first line in it. */
const objectsWithSecrets = async (repository: string, options: ScanOptions) => {
  const found = new Map<string, Map<string, number>>();
  for await (const { oid, secret, line } of scanObjects(repository, {
    problem: options.problem,
    object: () => options.progress("objects"),
    binary: () => options.binary(),
  })) {
    const here = found.get(oid);
    if (here?.has(secret) || !(await options.isOurs(secret))) continue;
    if (here) here.set(secret, line);
    else if (found.size < maxObjectsWithSecrets) found.set(oid, new Map([[secret, line]]));
    else {
      options.problem(
        `${repository}: more than ${maxObjectsWithSecrets} objects hold secrets; the rest was not searched`,
      );
      break;
    }
  }
  return found;
};

/** For each secret and path the oldest commit that brought it in; below `prefix`. */
const placesOf = async (
  repository: string,
  prefix: string,
  objects: ReadonlyMap<string, ReadonlyMap<string, number>>,
  options: ScanOptions,
) => {
  const places = new Map<string, Map<string, Place>>();
  const located = new Set<string>();
  for await (const { oid, path, commit, committedMs } of originsOf(
    repository,
    new Set(objects.keys()),
    options.problem,
  )) {
    located.add(oid);
    const name = path ? shown(path) : "(message)";
    if (prefix && !path?.toString("utf8").startsWith(prefix)) continue;
    for (const [secret, line] of objects.get(oid) ?? []) {
      const known = places.get(secret) ?? new Map<string, Place>();
      places.set(secret, known);
      const before = known.get(name);
      if (before ? committedMs > before.committedMs : known.size >= maxPlacesPerSecret) continue;
      known.set(name, { commit, committedMs, line });
    }
  }
  return { places, located };
};

/**
 * Our secrets in the whole history of a repository: a secret that was "removed" later is still there for everyone who has a copy. One
 * sighting for each secret and path, with the oldest commit; an object without a commit (staged, dropped) stands for itself.
 */
export async function* scanHistory(repository: string, prefix: string, options: ScanOptions): AsyncGenerator<Sighting> {
  const objects = await objectsWithSecrets(repository, options);
  if (objects.size === 0) return;
  const { places, located } = await placesOf(repository, prefix, objects, options);
  for (const [secret, known] of places)
    for (const [name, { commit, committedMs, line }] of known)
      yield {
        kind: "git",
        location: `${repository}@${commit.slice(0, 12)}:${name}:${line}`,
        secret,
        // A commit may claim any date; one that cannot be true says nothing.
        ...(committedMs > 0 && committedMs <= options.nowMs && { exposedSince: new Date(committedMs) }),
      };
  if (prefix) return;
  for (const [oid, secrets] of objects)
    if (!located.has(oid))
      for (const [secret, line] of secrets)
        yield { kind: "git", location: `${repository}@${oid.slice(0, 12)}:(in no commit):${line}`, secret };
}
