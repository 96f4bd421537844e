-- That a host is to take no new runs: by whom and since when, as a versioned body. A column of its own: what agents register
-- does not touch it, whichever program stores that.
alter table hosts add column cordon {text};
