# Installs what the lockfile says, and does nothing when nothing changed.
set -eu
want=$(cat pnpm-lock.yaml pnpm-workspace.yaml package.json packages/*/package.json services/*/package.json deploy/package.json test/package.json | sha256sum)
[ "$(cat node_modules/.installed 2>/dev/null)" = "$want" ] && exit 0
CI=true npx -y pnpm@12.21.0 install --frozen-lockfile
echo "$want" > node_modules/.installed
