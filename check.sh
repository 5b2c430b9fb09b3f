# Everything that is checked without running the code; prints what fails, stops at the first.
set -eu
export PATH="$PWD/node_modules/.bin:$PATH"
tsc --noEmit
biome check .
buf lint
buf breaking proto --against proto/image.binpb
before=$(find packages/contracts/gen proto/image.binpb docs/asyncapi.yaml -type f -exec sha256sum {} + | sort)
npm run --silent gen
after=$(find packages/contracts/gen proto/image.binpb docs/asyncapi.yaml -type f -exec sha256sum {} + | sort)
[ "$before" = "$after" ] || { echo "generated code was not up to date: commit what 'pnpm gen' has just written" >&2; exit 1; }
