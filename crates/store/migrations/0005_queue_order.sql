-- Where a run stands in the queue of its org: when it was submitted, by its priority earlier or later; nothing while it pauses.
-- A run that was there before this step, or was taken in by a program that does not know of it, has 0 and stands at the head, in
-- the order in which they were submitted. No row is written here, however many there are.
alter table runs add column queue_at bigint default 0;
drop index runs_queued;
create index runs_queue on runs (org, queue_at, id, queued_at) where state = 'queued';
