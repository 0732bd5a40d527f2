#!/usr/bin/env ruby
# A job template: greets whoever its arguments name. It needs ruby on the worker.

who = ARGV.empty? ? 'world' : ARGV.join(' ')
puts "Hello #{who}, from Ruby #{RUBY_VERSION}."
puts "job #{ENV.fetch('JOBCLUSTER_JOB_ID', 'none')}, worker #{ENV.fetch('JOBCLUSTER_WORKER_ID', 'none')}"
