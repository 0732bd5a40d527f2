-- Every statement of the store. A block begins with its name; sqlite.py and writer.py use them by it.

-- :name insert_job
INSERT INTO jobs (job_id, state, worker_id, name, array_id, status)
VALUES (:job_id, :state, :worker_id, :name, :array_id, :status)

-- :name insert_spec
INSERT INTO specs (number, spec) VALUES (:number, :spec)

-- :name insert_label
INSERT INTO labels (key, value, number) VALUES (:key, :value, :number)

-- :name update_job
UPDATE jobs SET state = :state, worker_id = :worker_id, status = :status WHERE job_id = :job_id

-- :name get_job
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.job_id = :job_id

-- :name active_jobs
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.state IN ('queued', 'starting', 'running', 'stopping')
ORDER BY jobs.number

-- :name find_key
SELECT job_id, body_hash FROM idempotency_keys
WHERE caller = :caller AND route = :route AND key = :key AND created_us > :after_us

-- :name insert_key
INSERT OR REPLACE INTO idempotency_keys (caller, route, key, body_hash, job_id, created_us)
VALUES (:caller, :route, :key, :body_hash, :job_id, :created_us)

-- :name delete_keys
DELETE FROM idempotency_keys WHERE created_us <= :before_us

-- :name save_worker
INSERT INTO workers (worker_id, document) VALUES (:worker_id, :document)
ON CONFLICT (worker_id) DO UPDATE SET document = excluded.document

-- :name delete_worker
DELETE FROM workers WHERE worker_id = :worker_id

-- :name workers
SELECT worker_id, document FROM workers ORDER BY worker_id

-- The list, once per filter that may lead it: the planner cannot use an index for "(:x IS NULL OR x = :x)",
-- and a walk over all jobs for a name that few have would grow with the history.

-- :name list_all
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.number < :cursor
  AND (:name IS NULL OR jobs.name = :name)
  AND (:worker_id IS NULL OR jobs.worker_id = :worker_id)
  AND (:state IS NULL OR jobs.state = :state)
  AND (:array_id IS NULL OR jobs.array_id = :array_id)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY jobs.number DESC LIMIT :limit

-- :name list_by_state
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.state = :state
  AND jobs.number < :cursor
  AND (:name IS NULL OR jobs.name = :name)
  AND (:worker_id IS NULL OR jobs.worker_id = :worker_id)
  AND (:array_id IS NULL OR jobs.array_id = :array_id)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY jobs.number DESC LIMIT :limit

-- :name list_by_worker
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.worker_id = :worker_id
  AND jobs.number < :cursor
  AND (:name IS NULL OR jobs.name = :name)
  AND (:state IS NULL OR jobs.state = :state)
  AND (:array_id IS NULL OR jobs.array_id = :array_id)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY jobs.number DESC LIMIT :limit

-- :name list_by_name
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.name = :name
  AND jobs.number < :cursor
  AND (:worker_id IS NULL OR jobs.worker_id = :worker_id)
  AND (:state IS NULL OR jobs.state = :state)
  AND (:array_id IS NULL OR jobs.array_id = :array_id)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY jobs.number DESC LIMIT :limit

-- :name list_by_array
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM jobs JOIN specs ON specs.number = jobs.number
WHERE jobs.array_id = :array_id
  AND jobs.number < :cursor
  AND (:name IS NULL OR jobs.name = :name)
  AND (:worker_id IS NULL OR jobs.worker_id = :worker_id)
  AND (:state IS NULL OR jobs.state = :state)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY jobs.number DESC LIMIT :limit

-- :name list_by_label
SELECT jobs.number, jobs.job_id, jobs.status, specs.spec
FROM labels AS led JOIN jobs ON jobs.number = led.number JOIN specs ON specs.number = led.number
WHERE led.key = :label_key AND led.value = :label_value
  AND led.number < :cursor
  AND (:name IS NULL OR jobs.name = :name)
  AND (:worker_id IS NULL OR jobs.worker_id = :worker_id)
  AND (:state IS NULL OR jobs.state = :state)
  AND (:array_id IS NULL OR jobs.array_id = :array_id)
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:labels) AS wanted WHERE NOT EXISTS (
          SELECT 1 FROM labels WHERE labels.key = wanted.key AND labels.value = wanted.value
              AND labels.number = jobs.number))
ORDER BY led.number DESC LIMIT :limit
