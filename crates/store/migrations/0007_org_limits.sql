-- What an org may have and do at most where that is not what the servers were told, and for each of its rates the
-- theoretical arrival time, which only grows. A server of before this step knows of neither and limits nothing.
create table org_limits (
  org {text} not null references orgs (id),
  kind {text} not null,
  value bigint not null,
  primary key (org, kind)
);

create table org_rates (
  org {text} not null references orgs (id),
  kind {text} not null,
  tat bigint not null,
  primary key (org, kind)
);
