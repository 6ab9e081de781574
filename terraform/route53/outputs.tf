output "policy_arn" {
  description = "Attach this to the role or user whose credentials the controller finds in its environment."
  value       = aws_iam_policy.controller.arn
}

output "traffic" {
  description = "The values of `[[traffic]]` in failover.toml, key by key."
  value       = local.traffic
}

output "failover_toml" {
  description = "The same as text, to be put into failover.toml: `terraform output -raw failover_toml`."
  value       = <<-TOML
    [[traffic]]
    name = "${local.traffic.name}"
    kind = "${local.traffic.kind}"
    zone_id = "${local.traffic.zone_id}"
    zone = "${local.traffic.zone}"
    record = "${local.traffic.record}"
    record_type = "${local.traffic.record_type}"
    ttl = "${local.traffic.ttl}"
    name_servers = ${jsonencode(local.traffic.name_servers)}

    [traffic.values]
    ${join("\n", [for site, value in local.traffic.values : "${site} = ${jsonencode(value)}"])}

    [traffic.identifiers]
    ${join("\n", [for site, identifier in local.traffic.identifiers : "${site} = ${jsonencode(identifier)}"])}
  TOML
}

locals {
  traffic = {
    name        = var.target_name
    kind        = "route53"
    zone_id     = data.aws_route53_zone.this.zone_id
    zone        = var.zone
    record      = var.record
    record_type = var.record_type
    ttl         = "${var.ttl_seconds}s"
    name_servers = sort(flatten([
      for server in data.dns_a_record_set.name_server : [for address in server.addrs : "${address}:53"]
    ]))
    values      = var.sites
    identifiers = { for site, record in aws_route53_record.site : site => record.set_identifier }
  }
}
