-- Other processes are told of a change when it commits, by the row of the audit chain that commits with it: of which chain,
-- and nothing else. Whoever appends cannot forget it.
CREATE FUNCTION audit_wakes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('muster_registry', NEW.tenant);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_wakes AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_wakes();

-- What other processes have to know of the holder: where devices find it.
ALTER TABLE leases ADD COLUMN facts TEXT;
