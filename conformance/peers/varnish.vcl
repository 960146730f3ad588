# The built-in VCL decides all else. The parameters are default_ttl=0, default_grace=0, and a keep of an hour so that stale
# objects are validated.
vcl 4.1;

backend origin {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
}

sub vcl_backend_response {
    set beresp.grace = 0s;
}
