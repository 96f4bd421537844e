-- Where in a log a time is: the newest time of all entries up to the end of a segment. It never falls from one segment to
-- the next, so the first segment that reaches a time is found by the index. What was stored before this step bears the
-- largest time: a reader looks into it, whatever time is asked for.
alter table log_heads add column newest_at bigint not null default 9223372036854775807;
alter table log_segments add column newest_at bigint not null default 9223372036854775807;
create index log_segments_by_time on log_segments (org, run, newest_at, last_seq);
