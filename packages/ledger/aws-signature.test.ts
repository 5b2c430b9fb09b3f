import { expect, it } from "vitest";
import { signedHeaders } from "./aws-signature.ts";

/** Examples of the Amazon S3 API reference, "Signature Calculations for the Authorization Header". */
const credentials = {
  accessKeyId: "AKIAIOSFODNN7EXAMPLE",
  secretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
};
const nowMs = Date.UTC(2013, 4, 24);

it.each([
  ["", { range: "bytes=0-9" }, "/test.txt", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"],
  ["", {}, "/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"],
  ["", {}, "/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"],
])("a request for %s%j%s has the signature of the reference", (body, headers, path, signature) => {
  const url = `https://examplebucket.s3.amazonaws.com${path}`;
  const signed = signedHeaders(credentials, "us-east-1", {
    method: "GET",
    url,
    headers,
    body: Buffer.from(body),
    nowMs,
  });
  expect(signed.authorization).toContain(`Signature=${signature}`);
  expect(signed["x-amz-date"]).toBe("20130524T000000Z");
});
