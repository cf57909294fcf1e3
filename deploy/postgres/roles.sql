-- What a PostgreSQL server needs before Muster's first start. Run it once in the registry's own database, as a superuser:
--
--   createdb --encoding=UTF8 --template=template0 muster
--   psql -d muster -v login=muster -v password='...' -f roles.sql
--
-- and give the server registry.url = "postgres://muster:...@host/muster". Running it again changes the password only.
--
-- muster_owner   owns the tables; taken for migrations
-- muster_app     sees the rows of the tenant that muster.tenant names, and no others (row-level security)
-- muster_worker  sees every tenant's: logins, claims, the rules' state
--
-- The login itself may do nothing: it takes one of the three for each transaction. It must not be a superuser and must
-- not have BYPASSRLS, or row-level security would not hold: the server refuses to start with such a one.
\set ON_ERROR_STOP on
SELECT format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE', name)
FROM (VALUES ('muster_owner'), ('muster_app'), ('muster_worker')) AS roles (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
SELECT format('CREATE ROLE %I', :'login') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'login') \gexec
ALTER ROLE :"login" LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE PASSWORD :'password';
GRANT muster_owner, muster_app, muster_worker TO :"login";
CREATE SCHEMA IF NOT EXISTS muster AUTHORIZATION muster_owner;
GRANT USAGE ON SCHEMA muster TO muster_app, muster_worker;
