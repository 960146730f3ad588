module larder.dev/cluster/pause

go 1.26
