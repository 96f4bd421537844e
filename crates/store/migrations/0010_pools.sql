-- Pools: hosts of one org that execute runs of others. A server of before this step grants on such a host to its own org
-- alone, and holds the leases of others that are renewed through it for lost: share when all servers know of this step.
-- A host is in its pool as long as it speaks with what stands beside that.
alter table hosts add column pool {text};
alter table hosts add column pool_voice {text};
create index hosts_of_pool on hosts (pool, org, id);

create table pool_orgs (
  pool {text} not null,
  org {text} not null references orgs (id),
  primary key (pool, org)
);
create index pools_of_org on pool_orgs (org, pool);

-- The leases of an agent may be of several orgs.
create index leases_by_agent on leases (agent, run, org);
drop index leases_of_agent;
