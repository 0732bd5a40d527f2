-- A job that waits for one worker is listed by it, not only when it is there.
UPDATE jobs
SET worker_id = (
    SELECT json_extract(specs.spec, '$.worker_id')
    FROM specs WHERE specs.number = jobs.number AND json_valid(specs.spec))
WHERE worker_id IS NULL;
