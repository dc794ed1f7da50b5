-- Supabase and its like offer every table of the schema to the roles anon and authenticated. Row security without a policy closes
-- a table to every role but its owner, superusers and those with BYPASSRLS (Supabase: postgres, service_role). So the services
-- log in as the role that ran the migrations. The persister does the same to each partition it makes.

ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE series ENABLE ROW LEVEL SECURITY;
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE markets ENABLE ROW LEVEL SECURITY;
ALTER TABLE trades ENABLE ROW LEVEL SECURITY;
ALTER TABLE lifecycle ENABLE ROW LEVEL SECURITY;
ALTER TABLE gaps ENABLE ROW LEVEL SECURITY;
ALTER TABLE consumer_offsets ENABLE ROW LEVEL SECURITY;

DO $$
DECLARE
    part record;
BEGIN
    FOR part IN SELECT relid::regclass AS name FROM unnest(ARRAY['book_events', 'checkpoints', 'tickers']) AS partitioned,
                       pg_partition_tree(partitioned::regclass) LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part.name);
    END LOOP;
END $$;
