-- Since when the log of a run that has ended is kept: since its end, as it is noted with it; nothing once it was deleted.
-- A run that was there before this step, or was ended by a program that does not know of it, has 0: whoever looks for old
-- logs finds it and notes its end. No row is written here, however many there are.
alter table runs add column log_kept_since bigint default 0;
create index runs_log_kept on runs (log_kept_since, id) where state = 'ended' and log_kept_since is not null;

-- Runs whose logs were deleted and whose objects are to be removed. A table of its own: a program that knows only
-- doomed_runs would remove what else the run has.
create table doomed_logs (
  org {text} not null references orgs (id),
  run {text} not null,
  doomed_at bigint not null,
  sweep_at bigint not null,
  primary key (org, run)
);
create index doomed_logs_due on doomed_logs (sweep_at, run);
