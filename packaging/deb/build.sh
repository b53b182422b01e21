#!/usr/bin/env bash
# Builds the Debian package from what git has committed:  packaging/deb/build.sh FOLDER [VERSION]
# Needs git, python3 and dpkg-deb; nothing is downloaded, and nothing outside FOLDER is written. VERSION is that of
# pyproject.toml unless it is given, as Debian writes versions (1.2.0, 1.2.0+git20261129).
set -euo pipefail
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: packaging/deb/build.sh FOLDER [VERSION]" >&2; exit 2; }
mkdir -p "$1"
target=$(cd "$1" && pwd)
version=${2:-}
cd "$(dirname "$0")/../.."
here=packaging/deb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
mkdir "$work/source" "$work/root"
git archive HEAD | tar -x -C "$work/source"
root=$work/root
source=$work/source
[ -n "$version" ] || version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$source/pyproject.toml")

modules=$root/usr/lib/python3/dist-packages
install -d "$modules" "$root/usr/bin" "$root/usr/share/doc/lamella" "$root/DEBIAN"
cp -r "$source/src/lamella" "$modules/lamella"
install -d "$modules/lamella-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: lamella\nVersion: %s\n' "$version" >"$modules/lamella-$version.dist-info/METADATA"
install -m 0755 "$source/$here/lamella" "$root/usr/bin/lamella"
cp -r "$source/docs/man" "$root/usr/share/man"
gzip -9n "$root"/usr/share/man/man?/*

# What shells complete with; the script of each is what the packaged program prints.
complete() { PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$modules python3 -m lamella completion "$1"; }
install -d "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
    "$root/usr/share/fish/vendor_completions.d"
complete bash >"$root/usr/share/bash-completion/completions/lamella"
complete zsh >"$root/usr/share/zsh/vendor-completions/_lamella"
complete fish >"$root/usr/share/fish/vendor_completions.d/lamella.fish"

documents=$root/usr/share/doc/lamella
install -m 0644 "$source/README.md" "$source/$here/copyright" "$documents/"
cp -r "$source/docs/guide" "$documents/guide"
printf 'lamella (%s) unstable; urgency=medium\n\n  * See CHANGELOG and the guide in this directory.\n\n -- The Lamella authors <lamella@localhost>  %s\n' \
    "$version" "$(git log -1 --format=%cD)" | gzip -9n >"$documents/changelog.gz"
(cd "$source" && python3 tools/release.py notes | gzip -9n) >"$documents/NEWS.gz"

sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$(du -sk "$root/usr" | cut -f 1)/" "$source/$here/control" >"$root/DEBIAN/control"
for script in postinst prerm postrm; do install -m 0755 "$source/$here/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
# The same commit makes the same package, wherever and whenever.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) dpkg-deb --root-owner-group --build "$root" \
    "$target/lamella_${version}_all.deb" >/dev/null
