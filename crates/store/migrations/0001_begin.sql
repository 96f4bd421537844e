-- Everything that a tenant owns bears its org, and every reference to it is by (org, id): no row can refer to another
-- org's. What a run owns goes with its run. Times are microseconds since the Unix epoch, bodies versioned JSON.

create table orgs (
  id {text} primary key,
  name {text} not null unique,
  created_at bigint not null
);

create table projects (
  id {text} primary key,
  org {text} not null references orgs (id),
  name {text} not null,
  created_at bigint not null,
  unique (org, id),
  unique (org, name)
);

create table tokens (
  id {text} primary key,
  org {text} not null references orgs (id),
  role {text} not null,
  name {text} not null,
  hash {bytes} not null unique,
  created_at bigint not null,
  expires_at bigint,
  revoked_at bigint
);
create index tokens_of_org on tokens (org, id);

create table hosts (
  id {text} primary key,
  org {text} not null references orgs (id),
  name {text} not null,
  version {text} not null,
  instance {text} not null,
  body {text} not null,
  registered_at bigint not null,
  seen_at bigint not null
);
create index hosts_of_org on hosts (org, name, id);

create table runs (
  id {text} primary key,
  org {text} not null,
  project {text} not null,
  state {text} not null,
  version bigint not null,
  fence bigint not null,
  queued_at bigint not null,
  deadline_at bigint,
  body {text} not null,
  unique (org, id),
  foreign key (org, project) references projects (org, id)
);
create index runs_of_project on runs (org, project, id);
create index runs_live on runs (org, id) where state <> 'ended';
create index runs_queued on runs (org, queued_at, id) where state = 'queued';
create index runs_due on runs (deadline_at, id) where deadline_at is not null;

create table run_labels (
  org {text} not null,
  key {text} not null,
  value {text} not null,
  run {text} not null,
  primary key (org, key, value, run),
  foreign key (org, run) references runs (org, id) on delete cascade
);
create index run_labels_of_run on run_labels (org, run);

create table idempotency_keys (
  org {text} not null,
  key {text} not null,
  digest {bytes} not null,
  run {text} not null,
  primary key (org, key),
  foreign key (org, run) references runs (org, id) on delete cascade
);
create index idempotency_keys_of_run on idempotency_keys (org, run);

create table leases (
  org {text} not null,
  run {text} not null,
  agent {text} not null,
  fence bigint not null,
  version bigint not null,
  expires_at bigint not null,
  primary key (org, run),
  foreign key (org, run) references runs (org, id) on delete cascade
);
create index leases_of_agent on leases (org, agent, run);

-- One row a run: the fence under which appends are taken (0 without a lease), the next sequences, and from how many bytes
-- in rows on its log is worth sealing. Its lock puts all appends to a run in order.
create table log_heads (
  org {text} not null,
  run {text} not null,
  fence bigint not null,
  next_log_seq bigint not null,
  next_event_seq bigint not null,
  unsealed_bytes bigint not null,
  seal_from bigint not null,
  primary key (org, run),
  foreign key (org, run) references runs (org, id) on delete cascade
);
-- By the run alone, which is unique as well: the primary key, which holds every head, is then no way to the few.
create index log_heads_sealable on log_heads (run) where unsealed_bytes >= seal_from;

-- fence and source_seq are set for what an agent told: its own number within the lease.
create table events (
  org {text} not null,
  run {text} not null,
  seq bigint not null,
  told_at bigint not null,
  fence bigint,
  source_seq bigint,
  body {text} not null,
  primary key (org, run, seq),
  unique (org, run, fence, source_seq),
  foreign key (org, run) references log_heads (org, run) on delete cascade
);

-- Either the bytes are here, or the key of the blob and how it is divided.
create table log_segments (
  org {text} not null,
  run {text} not null,
  first_seq bigint not null,
  last_seq bigint not null,
  size bigint not null,
  data {bytes},
  blob_key {text},
  parts {text},
  primary key (org, run, last_seq),
  check ((data is null) = (blob_key is not null) and (data is null) = (parts is not null)),
  foreign key (org, run) references log_heads (org, run) on delete cascade
);
create index log_segments_unsealed on log_segments (org, run, last_seq) where data is not null;

-- Runs that were deleted and whose objects are to be removed.
create table doomed_runs (
  org {text} not null references orgs (id),
  run {text} not null,
  doomed_at bigint not null,
  sweep_at bigint not null,
  primary key (org, run)
);
create index doomed_runs_due on doomed_runs (sweep_at, run);
