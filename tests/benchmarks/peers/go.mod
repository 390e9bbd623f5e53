module holdfast/bench

go 1.26.8

require github.com/restic/restic v0.19.1
