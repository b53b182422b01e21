#!/usr/bin/env bash
# Builds the package from what git has committed:  packaging/rpm/build.sh FOLDER
# Needs git and rpmbuild; nothing is downloaded, and nothing outside FOLDER is written.
set -euo pipefail
[ $# = 1 ] || { echo "usage: packaging/rpm/build.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{SOURCES,SPECS,BUILD,RPMS,SRPMS}
git archive --format=tar.gz --prefix="lamella-$version/" -o "$work/SOURCES/lamella-$version.tar.gz" HEAD
# The macros of a build host differ; those that matter are given, so that every host builds the same package.
rpmbuild -bb --quiet --nodeps --define "_topdir $work" --define "lamella_version $version" \
    --define "_datadir /usr/share" --define "_bindir /usr/bin" --define "_mandir /usr/share/man" \
    --define "__os_install_post %{nil}" --define "_docdir /usr/share/doc" packaging/rpm/lamella.spec
cp "$work"/RPMS/noarch/*.rpm "$target/"
