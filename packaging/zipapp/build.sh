#!/usr/bin/env bash
# Builds one file that runs with any Python 3.11 or newer that has `cryptography` and a zstd module:
#   packaging/zipapp/build.sh FOLDER     makes FOLDER/lamella.pyz out of what git has committed
set -euo pipefail
[ $# = 1 ] || { echo "usage: packaging/zipapp/build.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
git archive HEAD src/lamella | tar -x -C "$work"
mkdir "$work/src/lamella-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: lamella\nVersion: %s\n' "$version" >"$work/src/lamella-$version.dist-info/METADATA"
python3 -m zipapp "$work/src" --python "/usr/bin/env python3" --main lamella.cli.main:entry --compress \
    --output "$target/lamella.pyz"
