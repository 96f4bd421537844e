-- The audit log of each org, and its head: the row that whoever appends has for itself. Of a record nothing is changed, and
-- none is removed. A program of before this step tells nothing.
create table audit_heads (
  org {text} primary key references orgs (id),
  seq bigint not null,
  digest {bytes} not null
);
create table audit (
  org {text} not null references orgs (id),
  seq bigint not null,
  at bigint not null,
  actor {text} not null,
  action {text} not null,
  subject {text} not null,
  details {text} not null,
  previous {bytes} not null,
  digest {bytes} not null,
  primary key (org, seq)
);
{append_only_audit}
