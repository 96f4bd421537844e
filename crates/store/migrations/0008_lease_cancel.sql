-- How urgently the run of a lease is to be ended, as the run itself says: a poll of an agent reads its leases and no runs.
-- What was asked for before this step, or by a program that does not know of it, the agent is told when it renews the lease.
alter table leases add column cancel {text};
