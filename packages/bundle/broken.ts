/** A file that is no evidence bundle at all. */
export class NotABundle extends Error {
  override readonly name = "NotABundle";
}

/** A bundle that was changed, or never held. The message names the file inside it and the rule that was broken, and repeats no content. */
export class BundleBroken extends Error {
  override readonly name = "BundleBroken";
  /** Name of the file inside; empty: the archive as such. */
  readonly file: string;
  constructor(file: string, why: string, options?: ErrorOptions) {
    super(file === "" ? why : `${file}: ${why}`, options);
    this.file = file;
  }
}
