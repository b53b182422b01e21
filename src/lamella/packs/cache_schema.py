"""The tables of a host's cache (lamella.packs.cache): whoever changes them raises the version there."""

SCHEMA = """
CREATE TABLE commits (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE packs (
    number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, domain BLOB, header BLOB, length INTEGER NOT NULL,
    own INTEGER NOT NULL, trouble TEXT
);
CREATE TABLE blobs (
    id BLOB NOT NULL, kind INTEGER NOT NULL, pack INTEGER NOT NULL, place INTEGER NOT NULL, sealed INTEGER NOT NULL,
    content INTEGER NOT NULL, PRIMARY KEY (id, kind, pack)
) WITHOUT ROWID;
CREATE INDEX blobs_by_pack ON blobs (pack);
CREATE TABLE segments (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, packs INTEGER NOT NULL);
CREATE TABLE covered (pack BLOB PRIMARY KEY, segment INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes (number INTEGER PRIMARY KEY, pack BLOB NOT NULL, place INTEGER NOT NULL, sealed BLOB NOT NULL);
CREATE UNIQUE INDEX nodes_by_place ON nodes (pack, place);
CREATE TABLE complete (root BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE suspects (
    id BLOB NOT NULL, kind INTEGER NOT NULL, pack BLOB NOT NULL, place INTEGER NOT NULL, sealed INTEGER NOT NULL,
    content INTEGER NOT NULL, PRIMARY KEY (id, kind, pack)
) WITHOUT ROWID;
CREATE TABLE applied (pack BLOB NOT NULL, kind INTEGER NOT NULL, id BLOB NOT NULL, PRIMARY KEY (pack, kind, id))
    WITHOUT ROWID;
CREATE TABLE answers (question TEXT PRIMARY KEY, state BLOB NOT NULL, sealed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE proved (pack BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
"""
