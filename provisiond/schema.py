"""The state file's tables, and the way to them from an older provisiond's. SQL only."""

# Written into the file's header, so that a file of something else is never taken for ours.
APPLICATION_ID = 0x70726F76  # "prov"
SCHEMA_VERSION = 2

_JOBS = """
CREATE TABLE {name} (
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    works_on TEXT NOT NULL,
    domain_uuid TEXT,
    generation INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    job TEXT NOT NULL
) STRICT;
"""
_INDEXES = """
CREATE UNIQUE INDEX one_unfinished_job_a_subject ON jobs (works_on) WHERE NOT ended;
CREATE UNIQUE INDEX one_unfinished_job_a_domain ON jobs (domain_uuid) WHERE NOT ended;
CREATE INDEX of_a_domain ON jobs (domain_uuid, created_at DESC);
CREATE INDEX newest_first ON jobs (created_at DESC);
"""
SCHEMA = f"""
{_JOBS.format(name="jobs")}
{_INDEXES}
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs (id),
    subject TEXT NOT NULL,
    at REAL NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX history ON events (job_id, seq);
"""

# Version 1 had one kind of job, which always worked on a domain. SQLite changes no column, so the
# table is made anew (sqlite.org/lang_altertable.html, 7), while foreign keys are still off.
FROM_VERSION_1 = f"""
BEGIN;
{_JOBS.format(name="jobs_2")}
INSERT INTO jobs_2
    SELECT id, request_id, 'domain ' || (job ->> '$.domain'), domain_uuid, generation, created_at,
        ended, cancel_requested,
        json_set(json_remove(job, '$.domain'), '$.kind', 'provision',
            '$.request.kind', 'provision', '$.subject', job ->> '$.domain',
            '$.works_on', 'domain ' || (job ->> '$.domain'))
    FROM jobs ORDER BY rowid;
DROP TABLE jobs;
ALTER TABLE jobs_2 RENAME TO jobs;
{_INDEXES}
ALTER TABLE events RENAME COLUMN domain TO subject;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608 - constants
