local text = { type = "string" }

return {
  name = "aws-lambda",
  fields = {
    { config = { type = "record", fields = {
      { host = text },
      { port = { type = "integer" } },
      { disable_https = { type = "boolean" } },
      { aws_key = text },
      { aws_secret = text },
      { aws_region = text },
      { function_name = { type = "string", required = true } },
      { forward_request_headers = { type = "boolean" } },
    } } },
  },
}
