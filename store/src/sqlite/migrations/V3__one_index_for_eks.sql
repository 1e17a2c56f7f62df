-- One index for an EK's certificates and for the active one among them.
DROP INDEX one_active_certificate;
DROP INDEX certificates_by_ek;
CREATE UNIQUE INDEX one_active_certificate ON certificates (ek_id, iif(status = 'active', 1, NULL));
DROP TRIGGER certificate_ended;
CREATE TRIGGER certificate_ended AFTER UPDATE OF status ON certificates WHEN new.status IN ('superseded', 'revoked')
BEGIN UPDATE revocations SET connections = connections + (old.status = 'active'), list = list + 1; END;
PRAGMA user_version = 3;
