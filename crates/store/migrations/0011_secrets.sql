-- Secrets of orgs and of projects. What is sealed can be opened with its data key alone. `scope` is the project, or empty for
-- the whole org: in a unique index of either engine nothing would be distinct from nothing. A program of before this step
-- rotates no data key to which a secret refers: it finds each time that somebody was faster, and changes nothing.
create table secrets (
  id {text} primary key,
  org {text} not null references orgs (id),
  project {text},
  scope {text} not null,
  name {text} not null,
  version bigint not null,
  bound {text} not null,
  envelope_key {text} not null references envelope_keys (id),
  sealed {bytes} not null,
  created_at bigint not null,
  updated_at bigint not null,
  unique (org, name, scope),
  check (scope = coalesce(project, '')),
  foreign key (org, project) references projects (org, id)
);
create index secrets_of_envelope on secrets (envelope_key, id);
