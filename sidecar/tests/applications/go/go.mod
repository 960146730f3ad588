module larder.dev/test-application

go 1.22
